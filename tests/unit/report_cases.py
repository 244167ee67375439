"""Reports that were made up."""

from typing import Any

from olivepress.reports.document import document_of


def timed(median: float) -> dict[str, float]:
    return {"median": median, "p95": median * 1.2, "spread": median * 0.1}


def part_with(kl: float) -> dict[str, Any]:
    return {
        "positions": 1020,
        "perplexity": 36.9,
        "source_perplexity": 36.5,
        "perplexity_increase": 0.011,
        "top1_agreement": 0.95,
        "kl_divergence": kl,
        "spread": {"kl_divergence": [kl * 0.9, kl * 1.1]},
    }


def version(name: str = "support-en-int4", number: int = 3, **report: Any) -> dict[str, Any]:
    """What the API answers for a version, its report with some parts set."""
    check = {"status": "passed", "problem": None, "notes": []}
    lengths = [(16, 1.0), (128, 6.0), (512, 30.0)]
    measured: dict[str, Any] = {
        "schema_version": 2,
        "hardware": {"cpu": "A processor", "class": "A processor / 2 cores / 24 GiB", "system": "Linux"},
        "load_average": [0.1, 0.2, 0.3],
        "size_bytes": 1_500_000,
        "source_size_bytes": 3_000_000,
        "size_ratio": 0.5,
        "load_ms": 20.0,
        "first_token_ms": timed(8.4) | {"prompt_tokens": 24},
        "tokens_per_s": timed(400.0),
        "peak_rss_bytes": 90_000_000,
        "latency": [
            {
                "prompt_tokens": tokens,
                "runs": 5,
                "first_token_ms": timed(first),
                "tokens_per_s": timed(300.0),
                "rss_bytes": 80_000_000,
                "problem": None,
            }
            for tokens, first in lengths
        ],
        "consistency": check,
        "cross_check": check,
        "tokenizer_parity": check,
        "edge_cases": check | {"cases": [{"name": "no text at all", "outcome": "refused", "detail": "it is empty"}]},
        "prompts": {
            "total": 1,
            "with_expectation": 1,
            "passed": 1,
            "items": [
                {
                    "name": "capital",
                    "messages": [{"role": "user", "content": "What is the capital of France?"}],
                    "answer": "The capital is Lyon.",
                    "expect": {"contains": "capital"},
                    "passed": True,
                    "seconds": 0.12,
                    "problem": None,
                    "source_answer": "The capital is Paris.",
                    "same_as_source": False,
                }
            ],
        },
        "soak": {
            "sessions": 30,
            "every": 1,
            "rss_bytes": [80_000_000 + 100 * n for n in range(30)],
            "rss_slope_bytes": 100.0,
            "rss_slope_interval": [90.0, 110.0],
            "verdict": "no_leak",
        },
        "quality": {
            "held_out": part_with(0.0076),
            "answers": part_with(0.0002),
            "yardstick": {"name": "int4-32", "kl": 0.0148},
            "kl_over_rounding": 0.4,
            "problem": None,
        },
        "certificate": {
            "status": "passed",
            "name": "c:1",
            "runtime": {"foundry-local-sdk": "2.2.1"},
            "network": "none",
            "exchanges": [{"mode": "web", "question": "Hello?", "answer": "Hi.", "seconds": 0.1}],
            "problem": None,
            "notes": [],
        },
        "gates": [
            {"name": "cross_check", "limit": True, "figure": True, "verdict": "passed", "note": "", "unit": ""},
            {"name": "max_size_ratio", "limit": 0.6, "figure": 0.5, "verdict": "passed", "note": "", "unit": "share"},
        ],
    }
    return {
        "model": name,
        "version": f"{name}:{number}",
        "number": number,
        "team": "default",
        "recipe": "cpu-int4",
        "precision": "int4",
        "family": "qwen2",
        "created_at": 1_790_000_000.0,
        "package_digest": "a" * 64,
        "artifact_digest": "b" * 64,
        "provenance": {},
        "report": measured | report,
    }


def document(*names: Any, **report: Any) -> dict[str, Any]:
    return document_of(version(*names, **report))
