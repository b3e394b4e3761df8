"""Forms with photos (multipart/form-data), held in memory."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from dla.serving.answers import RequestError

MOST_PARTS = 16  # files, and fields that are no file


def form_photos(body: bytes, content_type: str, most: int = MOST_PARTS) -> list[tuple[str, bytes]]:
    """Return the name and the bytes of each file in the field `image` of a form, in order.

    Raises:
        RequestError: the form is damaged, has too many parts, other fields, or no photo.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise RequestError(400, "bad_form", "the form's Content-Type has no boundary")
    parts = _Parts(most)
    try:
        parser = FormParser(
            "multipart/form-data", parts.add_field, parts.add_file, parts.end, boundary, config=_in_memory(len(body))
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, AssertionError) as error:
        raise RequestError(400, "bad_form", f"the form is damaged ({error})") from None
    if not parts.has_end:
        raise RequestError(400, "bad_form", "the form ends before its last boundary")
    if not parts.photos:
        raise RequestError(
            400, "no_photo", "the form has no photo. Send it as a file in the field image: -F image=@cat.jpg"
        )
    return parts.photos


class _Parts:
    """The parts of a form as they come."""

    def __init__(self, most: int) -> None:
        self.most, self.photos, self.has_end = most, list[tuple[str, bytes]](), False

    def add_file(self, file: File) -> None:
        if file.field_name != b"image":
            name = (file.field_name or b"").decode("utf-8", "replace")
            raise RequestError(400, "bad_form", f'the form has a file in "{name}". Allowed: image')
        if len(self.photos) == self.most:
            raise RequestError(400, "bad_form", f"the form has more than {self.most} photos")
        file.file_object.seek(0)
        name = (file.file_name or b"").decode("utf-8", "replace")
        self.photos.append((name or f"input {len(self.photos)}", file.file_object.read()))
        file.close()

    def add_field(self, field: Field) -> None:
        name = (field.field_name or b"").decode("utf-8", "replace")
        hint = "Send it as a file: -F image=@cat.jpg" if name == "image" else "Options belong into the address: ?topk=3"
        raise RequestError(
            400, "no_photo" if name == "image" else "bad_form", f'"{name}" is a text in the form. {hint}'
        )

    def end(self) -> None:
        self.has_end = True


def _in_memory(size: int) -> dict[str, object]:
    """Return the parser's settings: no photo touches the disk."""
    return {"MAX_MEMORY_FILE_SIZE": size + 1, "MAX_BODY_SIZE": size + 1, "UPLOAD_ERROR_ON_BAD_CTE": True}
