"""How a token is written where it can be read: white space and parts of characters made visible."""

WHITE_SPACE = {" ": "␣", "\n": "↵", "\t": "⇥"}


def readable_token(token, can_draw=str.isprintable):
    """A token's bytes as text: white space as symbols, what cannot be drawn as code points.

    Bytes that are not whole characters are written in hexadecimal. `can_draw(character)`: whether
    there is a glyph.
    """
    try:
        text = token.decode("utf-8")
    except UnicodeDecodeError:
        return hex_bytes(token)
    return "".join(readable_char(char, can_draw) for char in text)


def token_label(tokenizer, token):
    """A token's id as readable text."""
    return readable_token(tokenizer.decode_bytes([token]))


def readable_char(char, can_draw=str.isprintable):
    if char in WHITE_SPACE:
        return WHITE_SPACE[char]
    return char if can_draw(char) else f"U+{ord(char):04X}"


def hex_bytes(token):
    return " ".join(f"{byte:02x}" for byte in token)


def shorten(text, max_chars):
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"
