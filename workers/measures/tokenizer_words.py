"""Whether a tokenizer cuts every word of its own vocabulary, and text that is hard to cut, as its source does.

Unit: none; a SHA-256 of all the tokens. Method: each token's own text is cut by itself, which takes the merges that
make it, and so are the lines of HARD_TEXT, each of which some rule of normalizing or cutting changes.
"""

import hashlib

import numpy as np
from tokenizers import Tokenizer

HARD_TEXT = (
    "decomposed: cafe\u0301, A\u030a, and composed: café, Å, \ufb01ne, \u2126, \u0130stanbul",
    "digits 0 12 345 6789 1234567890 3.14 1,000,000 2026-11-23 ١٢٣ １２３",
    "   leading   and  double  spaces,\ttabs\t\t,\u00a0no-break,\u3000wide   ",
    "line\nbreaks\n\nof\r\nall\r\rkinds\n \n  \n\n\n",
    "don't I'LL we've THEY'RE 's 'S o'clock “quoted” ‘so’",
    "snake_case camelCase __init__(self, *args) -> None: # x != y && z; </html> https://a.example/b?c=d&e=f%20g",
    "你好，世界。日本語テキスト、한국어 텍스트 ไทย हिन्दी עברית العربية русский ελληνικά",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🙂🙃 e\u200bf \ufeffx \u202eright\u202c \x00\x01\x7f",
    "ALL CAPS Title Case lower ß ẞ ŉ ǅ",
    "<s> </s> <|im_start|> <|endoftext|> [INST] <start_of_turn> <unk> <pad>",
)


def words_print(tokenizer: Tokenizer) -> str:
    """The SHA-256 of how this tokenizer cuts all that."""
    words = [tokenizer.decode([number], skip_special_tokens=False) for number in range(tokenizer.get_vocab_size())]
    digest = hashlib.sha256()
    for cut in tokenizer.encode_batch([*HARD_TEXT, *words], add_special_tokens=False):
        # A tokenizer that was saved in the middle of training may fill up what is cut together.
        ids = [number for number, is_own in zip(cut.ids, cut.attention_mask, strict=True) if is_own]
        digest.update(np.asarray([*ids, -1], dtype="<i4").tobytes())
    return digest.hexdigest()
