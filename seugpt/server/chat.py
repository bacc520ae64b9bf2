"""A conversation as the text that a model was trained on: its chat template, in Jinja."""

import json

from seugpt.server.errors import ApiError

ROLES = ("system", "developer", "user", "assistant", "tool")


def render_chat(loaded, messages):
    """The text of a conversation, up to where the reply begins. Raises ApiError."""
    special = loaded.tokenizer.special
    if special.chat_template is None:
        message = (
            f"{loaded.name} has no chat template: it continues texts. Send a prompt to "
            "/v1/completions, or serve a model that was trained to chat"
        )
        raise ApiError(400, message, param="messages", code="no_chat_template")
    check_messages(messages)
    jinja2 = import_jinja()
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(special.chat_template).render(
            messages=messages,
            add_generation_prompt=True,
            bos_token=special.bos or "",
            eos_token=next(iter(special.eos), ""),
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise ApiError(400, f"the chat template refuses these messages: {error}") from error


def raise_exception(message):
    """What templates call for conversations that they cannot write."""
    raise ValueError(message)


def import_jinja():
    try:
        import jinja2
        import jinja2.sandbox
    except ImportError:
        message = "chat templates need the package jinja2: python -m pip install jinja2==3.1.6"
        raise ApiError(501, message) from None
    return jinja2


def check_messages(messages):
    """Raise ApiError unless these are messages, each with a role and a text."""
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a list of messages", param="messages")
    for number, message in enumerate(messages):
        name = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ApiError(400, f"{name} needs a role: {', '.join(ROLES)}", param=name)
        if not isinstance(message.get("content"), str):
            raise ApiError(400, f"{name}.content must be a text", param=name)
