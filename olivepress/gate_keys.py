"""Gates as people write them in a recipe: names, kinds and ranges of the limits. Pure."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from olivepress.gates import GateLimits

Flag = Annotated[bool, Field(strict=True)]
Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] | None
Amount = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] | None
TimeLimit = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] | None


class GateKeys(BaseModel):
    """Limits that keep a bad model from being published; null, or false for a check: no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    certificate_required: Flag = GateLimits.certificate_required
    """The model must chat in the real Foundry Local runtime."""
    min_prompts_passed: Share = GateLimits.min_prompts_passed
    """Share of the domain prompts with an expectation that must be met."""
    cross_check: Flag = GateLimits.cross_check
    """Files of the model directory must agree with each other, and with the source where it is at hand."""
    tokenizer_parity: Flag = GateLimits.tokenizer_parity
    """Conversations must become the same prompt by transformers, by the engine and by the PromptTemplate."""
    edge_cases: Flag = GateLimits.edge_cases
    """Every edge case must end with an answer or a clean refusal."""
    consistency: Flag = GateLimits.consistency
    """The model must answer at every length of prompt."""
    max_kl_over_rounding: Amount = GateLimits.max_kl_over_rounding
    """By how many times the model may be farther from its source than rounding alone makes it."""
    max_kl_divergence: Amount = GateLimits.max_kl_divergence
    """Mean nats from the source's next-token distributions, on the held-out text."""
    max_perplexity_increase: Amount = GateLimits.max_perplexity_increase
    """Share by which the perplexity of the held-out text may be above the source's: 0.05 is five percent."""
    min_top1_agreement: Share = GateLimits.min_top1_agreement
    """Share of positions where the model names the same next token as its source."""
    max_size_ratio: Amount = GateLimits.max_size_ratio
    """Bytes for each byte of the source checkpoint."""
    max_peak_rss_bytes: Amount = GateLimits.max_peak_rss_bytes
    """Peak memory of a process that does nothing but run the model."""
    max_rss_slope: Amount = GateLimits.max_rss_slope
    """Bytes by which memory may grow with each session of the soak."""
    max_length_jump: Amount = GateLimits.max_length_jump
    """By how many times the cost of a token may exceed what the length of the prompt explains."""
    max_first_token_ms: TimeLimit = GateLimits.max_first_token_ms
    """Binds on `timing_hardware` only."""
    min_tokens_per_s: TimeLimit = GateLimits.min_tokens_per_s
    """Binds on `timing_hardware` only."""
    max_load_ms: TimeLimit = GateLimits.max_load_ms
    """Binds on `timing_hardware` only."""
    timing_hardware: Annotated[str, Field(min_length=1, max_length=200)] | None = GateLimits.timing_hardware
    """The hardware class that limits of time were chosen for, as reports and `olivepress workers --json` name it."""
