"""The prompt template is what the checkpoint's own chat template writes, or nothing."""

from dataclasses import replace

import pytest

from olivepress.checkpoints.chat_template import ChatTemplate, Message
from olivepress.foundry.prompt_template import derive_prompt_template
from tests.unit import chat_templates as published

CHATML_PIECES = {
    "system": "<|im_start|>system\n{Content}<|im_end|>",
    "user": "<|im_start|>user\n{Content}<|im_end|>",
    "assistant": "<|im_start|>assistant\n{Content}<|im_end|>",
    "prompt": "<|im_start|>user\n{Content}<|im_end|>\n<|im_start|>assistant",
}

EXPRESSIBLE = {
    "CHATML": CHATML_PIECES,
    "QWEN2": CHATML_PIECES,
    "QWEN25": CHATML_PIECES,
    "QWEN3": CHATML_PIECES,
    "SMOLLM": CHATML_PIECES,
    "LLAMA3": {
        "system": "<|start_header_id|>system<|end_header_id|>\n\n{Content}<|eot_id|>",
        "user": "<|start_header_id|>user<|end_header_id|>\n\n{Content}<|eot_id|>",
        "assistant": "<|start_header_id|>assistant<|end_header_id|>\n\n{Content}<|eot_id|>",
        "prompt": "<|start_header_id|>user<|end_header_id|>\n\n{Content}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>",
    },
    "PHI3": {
        "system": "<|system|>\n{Content}<|end|>",
        "user": "<|user|>\n{Content}<|end|>",
        "assistant": "<|assistant|>\n{Content}<|end|>",
        "prompt": "<|user|>\n{Content}<|end|>\n<|assistant|>",
    },
    "PHI4": {
        "system": "<|im_start|>system<|im_sep|>{Content}<|im_end|>",
        "user": "<|im_start|>user<|im_sep|>{Content}<|im_end|>",
        "assistant": "<|im_start|>assistant<|im_sep|>{Content}<|im_end|>",
        "prompt": "<|im_start|>user<|im_sep|>{Content}<|im_end|><|im_start|>assistant<|im_sep|>",
    },
    "GEMMA": {
        "user": "<start_of_turn>user\n{Content}<end_of_turn>",
        "assistant": "<start_of_turn>model\n{Content}<end_of_turn>",
        "prompt": "<start_of_turn>user\n{Content}<end_of_turn>\n<start_of_turn>model",
    },
    "MISTRAL": {
        "user": "[INST] {Content} [/INST]",
        "assistant": "{Content}</s>",
        "prompt": "[INST] {Content} [/INST]",
    },
    "ZEPHYR": {
        "system": "<|system|>\n{Content}</s>",
        "user": "<|user|>\n{Content}</s>",
        "assistant": "<|assistant|>\n{Content}</s>",
        "prompt": "<|user|>\n{Content}</s>\n<|assistant|>",
    },
    "GRANITE": {
        "system": "<|start_of_role|>system<|end_of_role|>{Content}<|end_of_text|>",
        "user": "<|start_of_role|>user<|end_of_role|>{Content}<|end_of_text|>",
        "assistant": "<|start_of_role|>assistant<|end_of_role|>{Content}<|end_of_text|>",
        "prompt": "<|start_of_role|>user<|end_of_role|>{Content}<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>",
    },
    "DEEPSEEK_R1": {
        "system": "{Content}",
        "user": "<｜User｜>{Content}",
        "assistant": "<｜Assistant｜>{Content}<｜end▁of▁sentence｜>",
        "prompt": "<｜User｜>{Content}<｜Assistant｜><think>",
    },
}

NOT_EXPRESSIBLE = {
    "LLAMA32": "date",
    "GEMMA3": "merges the system message",
    "MISTRAL_V3": "merges the system message",
    "LLAMA2": "merges the system message",
}


def test_every_published_template_is_in_one_of_the_two_lists() -> None:
    assert set(published.ALL) == set(EXPRESSIBLE) | set(NOT_EXPRESSIBLE)


@pytest.mark.parametrize("family", EXPRESSIBLE)
def test_the_pieces_are_those_of_the_family(family: str) -> None:
    assert derive_prompt_template(published.ALL[family]).template == EXPRESSIBLE[family]


@pytest.mark.parametrize("family", NOT_EXPRESSIBLE)
def test_what_the_form_cannot_say_gives_no_template_and_the_reason(family: str) -> None:
    derivation = derive_prompt_template(published.ALL[family])

    assert derivation.template is None
    assert derivation.note is not None
    assert NOT_EXPRESSIBLE[family] in derivation.note


@pytest.mark.parametrize("family", EXPRESSIBLE)
@pytest.mark.parametrize("roles", ["u", "uau", "uauau", "su", "suau"])
def test_the_pieces_one_after_another_are_the_templates_own_rendering_but_for_whitespace(
    family: str, roles: str
) -> None:
    pieces = EXPRESSIBLE[family]
    if roles.startswith("s") and "system" not in pieces:
        pytest.skip("the family has no system message")
    names = {"s": "system", "u": "user", "a": "assistant"}
    conversation: list[Message] = [
        {"role": names[letter], "content": f"Text {n} with\ntwo lines, <b>tags</b> & ümläuts"}
        for n, letter in enumerate(roles)
    ]

    written = [pieces[message["role"]].replace("{Content}", message["content"]) for message in conversation[:-1]]
    written.append(pieces["prompt"].replace("{Content}", conversation[-1]["content"]))

    rendered = published.ALL[family].render(conversation)
    assert "".join("".join(written).split()) in "".join(rendered.split())
    assert "".join(rendered.split()).endswith("".join("".join(written).split()))


@pytest.mark.parametrize("family", ["QWEN2", "QWEN25", "SMOLLM", "GRANITE"])
def test_a_default_system_text_is_named_in_the_note(family: str) -> None:
    note = derive_prompt_template(published.ALL[family]).note

    assert note is not None
    assert "no system message" in note
    assert "You are" in note


def test_a_template_without_a_system_role_says_so() -> None:
    note = derive_prompt_template(published.GEMMA).note

    assert note == "the chat template refuses a system message, so there is no piece for one"


def test_a_dropped_system_message_is_not_hidden() -> None:
    silent = ChatTemplate(
        "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )

    derivation = derive_prompt_template(silent)

    assert derivation.template is None
    assert derivation.note == "the chat template drops the system message"


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("{{ m.content | upper }}", "altered"),
        ("{{ m.content | replace('<', '&lt;') }}", "escaped"),
        ("{{ m.content }} {{ m.content }}", "written twice"),
        ("{{ m.content | truncate(8) }}", "cut"),
    ],
)
def test_changed_message_text_gives_no_template(body: str, what: str) -> None:
    changed = ChatTemplate(
        "{% for m in messages %}<|{{ m.role }}|>" + body + "<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )

    assert derive_prompt_template(changed).template is None, what


def test_a_template_that_numbers_its_turns_gives_no_template() -> None:
    numbered = ChatTemplate(
        "{% for m in messages %}{{ loop.index }} {{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )

    assert derive_prompt_template(numbered).template is None


def test_a_template_only_for_tools_gives_no_template_and_its_own_words() -> None:
    tools_only = ChatTemplate("{% if not tools %}{{ raise_exception('tools are required') }}{% endif %}")

    derivation = derive_prompt_template(tools_only)

    assert derivation.template is None
    assert "tools are required" in (derivation.note or "")


def test_a_template_that_is_no_jinja_gives_no_template() -> None:
    assert derive_prompt_template(ChatTemplate("{% for m in %}")).template is None


def test_a_template_cannot_reach_out_of_the_sandbox() -> None:
    nosy = ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}")

    derivation = derive_prompt_template(nosy)

    assert derivation.template is None
    assert "unsafe" in (derivation.note or "")


def test_beginning_of_text_that_is_spelled_out_in_the_template_is_not_taken_for_text_of_its_own() -> None:
    spelled_out = replace(
        published.LLAMA3,
        source=published.LLAMA3.source.replace("bos_token + content", "'<|begin_of_text|>' + content"),
    )

    derivation = derive_prompt_template(spelled_out)

    assert derivation.template == EXPRESSIBLE["LLAMA3"]
    assert derivation.note is None


def test_markers_that_are_no_tokens_of_the_tokenizer_are_not_cut_in_two() -> None:
    # Without added tokens, "</s>" and "<s>" or "<|user|>" and "<|assistant|>" have characters in common.
    bare = replace(published.ZEPHYR, added_tokens=())

    assert derive_prompt_template(bare).template == EXPRESSIBLE["ZEPHYR"]
