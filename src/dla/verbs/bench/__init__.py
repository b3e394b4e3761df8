"""How fast every engine is here, how much memory it takes, beside timm if that is wanted."""
