"""The learning rate of a run that starts from the weights of a model, by the width of the model.

    lr = usual · (768 / width)^3.36      width between 256 and 768

`usual` is the rate that libraries have for models of 768 channels and more: 5e-5 for all weights (transformers'
`Trainer`), 2e-4 for adapters (QLoRA, Dettmers et al. 2023, appendix B). Narrow models, such as those that are trained
here, hardly learn at these rates; up to 256 channels they have 40 times as much. The exponent joins the two ends, and
meets the best rate of a published model of 576 channels (docs/performance.md, "Learning rate of fine-tuning").
"""

FINE_TUNING_WARMUP = 10
"""Updates."""
_WIDE, _NARROW, _EXPONENT = 768, 256, 3.36
_USUAL, _USUAL_OF_ADAPTERS = 5e-5, 2e-4


def fine_tuning_rate(channels: int, *, adapters: bool) -> float:
    """Return the learning rate for a model of `channels` channels, or of its `adapters` alone, with two digits."""
    width = min(max(channels, _NARROW), _WIDE)
    return float(f"{(_USUAL_OF_ADAPTERS if adapters else _USUAL) * (_WIDE / width) ** _EXPONENT:.2g}")
