"""The tokens that begin and end a text, pad a batch, and the template of a chat.

Hugging Face keeps them beside tokenizer.json, in up to three files.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from seugpt.errors import DataError
from seugpt.files import read_text

FILES = ("tokenizer_config.json", "generation_config.json", "config.json")


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens as they are spelled in the vocabulary."""

    bos: str | None = None
    eos: tuple[str, ...] = ()  # each of them ends a text
    pad: str | None = None
    chat_template: str | None = None

    def to_json(self):
        return {**asdict(self), "eos": list(self.eos)}

    def eos_ids(self, tokenizer):
        """The tokens that end a text, as a list of ids."""
        return [tokenizer.token_id(token) for token in self.eos]

    def ids(self, tokenizer):
        """The ids as config.json has them: {"bos_token_id": id, ...}; None for what is missing."""
        eos = self.eos_ids(tokenizer)
        return {
            "bos_token_id": self.bos and tokenizer.token_id(self.bos),
            "eos_token_id": eos if len(eos) > 1 else next(iter(eos), None),
            "pad_token_id": self.pad and tokenizer.token_id(self.pad),
        }


def from_json(content):
    """The SpecialTokens of to_json(). Raises ValueError."""
    special = SpecialTokens(**{**content, "eos": tuple(content["eos"])})
    texts = [special.bos, special.pad, special.chat_template, *special.eos]
    if not all(text is None or isinstance(text, str) for text in texts):
        raise ValueError("special tokens must be texts")
    return special


def read_special_tokens(folder, tokens):
    """Those of a Hugging Face folder; `tokens`: {id: token} of the vocabulary.

    Raises DataError for a damaged file.
    """
    names, generation, config = (read_object(Path(folder, name)) for name in FILES)

    def named(key):
        token = names.get(f"{key}_token")
        if isinstance(token, dict):  # with its settings
            token = token.get("content")
        return [token] if isinstance(token, str) else []

    def numbered(content, key):
        ids = content.get(f"{key}_token_id")
        ids = ids if isinstance(ids, list) else [ids]
        return [tokens[i] for i in ids if type(i) is int and i in tokens]

    bos = named("bos") or numbered(config, "bos")
    eos = named("eos") + (numbered(generation, "eos") or numbered(config, "eos"))
    pad = named("pad") or numbered(config, "pad")
    known = set(tokens.values())
    return SpecialTokens(
        bos=next((token for token in bos if token in known), None),
        eos=tuple(token for token in dict.fromkeys(eos) if token in known),
        pad=next((token for token in pad if token in known), None),
        chat_template=read_chat_template(folder, names),
    )


def read_chat_template(folder, names):
    """From chat_template.jinja or tokenizer_config.json, where several may have names."""
    path = Path(folder, "chat_template.jinja")
    if path.is_file():
        try:
            return read_text(path)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {path}: {error}") from error
    template = names.get("chat_template")
    if isinstance(template, list):
        named = [each for each in template if isinstance(each, dict)]
        by_name = {str(each.get("name")): each.get("template") for each in named}
        template = by_name.get("default")
    return template if isinstance(template, str) else None


def read_object(path):
    """The object in a JSON file; {} if there is no such file. Raises DataError."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {error}. Mend it, or take it away") from error
    return content if isinstance(content, dict) else {}
