"""One module a verb: joins the parts into one thing that a user does."""
