"""Chat templates that fail, lose what is said, or never end."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.broken.breakage import Broken
from tests.checkpoints import CHAT_TEMPLATE
from tests.integration.ingest_cases import edit_json

DOES_NOT_WORK = r"the chat template in .*tokenizer_config\.json does not work \("
MEND = "; mend it, or put back the one"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{{ messages[0].content }}{% endfor %}{% endfor %}"
ENORMOUS = "{% set text = messages[0].content * 99999999 %}{{ text * 1000 }}"


def inline(template: Any) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory / "tokenizer_config.json", chat_template=template)


def in_file(content: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / "chat_template.jinja").write_bytes(content)


TABLE: Mapping[str, Broken] = {
    "no template": Broken(inline(...), "has no chat template, .*; put the one it was trained with"),
    "a template with a syntax error": Broken(
        inline("{% for m in messages %}"), DOES_NOT_WORK + ".*end of template.*" + MEND
    ),
    "a template that calls what there is not": Broken(
        inline("{{ frobnicate(messages) }}"), DOES_NOT_WORK + "'frobnicate' is undefined" + r"\)" + MEND
    ),
    "a template that looks into Python": Broken(
        inline("{{ messages.__class__.__mro__ }}"), DOES_NOT_WORK + ".*unsafe.*" + MEND
    ),
    "a template that reads a file": Broken(inline("{% include '/etc/passwd' %}"), DOES_NOT_WORK + ".*loader.*" + MEND),
    "a template that never ends": Broken(inline(ENDLESS), DOES_NOT_WORK + "it did not end within .*" + MEND),
    "a template that fills the memory": Broken(inline(ENORMOUS), DOES_NOT_WORK + "it asks for more than .*" + MEND),
    "a template that calls itself": Broken(
        inline("{% macro again(x) %}{{ again(x) }}{% endmacro %}{{ again(1) }}"), DOES_NOT_WORK + ".*recursion.*" + MEND
    ),
    "a template that says too much": Broken(
        inline("{{ messages[0].content * 9999 }}"), "makes 259,974 characters of a question of 26; put back"
    ),
    "a template with a zero byte": Broken(
        inline("{{ messages[0].content }}\0"), "holds a zero byte, .*; put back the one"
    ),
    "a template that forgets the question": Broken(
        inline("<|im_start|>assistant"), "leaves out what the user says; put back the one"
    ),
    "a template that is a number": Broken(inline(5), "is no text; write the Jinja template there"),
    "templates without a default": Broken(
        inline([{"name": "tools", "template": CHAT_TEMPLATE}]), "none is called 'default'; give that name"
    ),
    "two templates that differ": Broken(
        in_file(CHAT_TEMPLATE.replace("assistant", "bot").encode()),
        "two chat templates that differ: .*; remove the one",
    ),
    "a template file of bytes": Broken(in_file(b"\xff\xfe{{ messages }}"), "is no UTF-8 text; save it again"),
    "a template file of megabytes": Broken(
        in_file(b"{# " + b"x" * 2**21 + b" #}"), "is larger than any chat_template.jinja should be .*; replace it"
    ),
}
