"""What the contrasts of CT methods share: one vector per side, a scale by a named rule, pairs that share a text.

Guarantee: how the learnt number becomes the factor of cosines is written in the method's YAML (`exp`, `multiply`,
`divide`), with its bounds; training holds the number itself within them, as the official codes do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import nn

from medvlp.config.methods import MethodConfig
from medvlp.errors import UserError
from medvlp.methods._choices import chosen
from medvlp.methods.base import Method, Term
from medvlp.methods.context import MethodContext
from medvlp.objectives.contrastive import info_nce, shared_text_nce, text_numbers
from medvlp.objectives.scale import ScalePolicy, cosine_factor
from medvlp.types import TextBatch

SHARED_TEXTS = ("positives", "negatives")


class ScaledMethod(Method):
    """Base of methods whose scale has a rule: constants `scale: {rule, start, low, high, learnt}` of `scale_term`.

    Attributes:
        scale_number: `[1]`, the logarithm of the factor, the factor or the temperature, by the rule.
    """

    scale_term = "info_nce"
    scale_number: torch.Tensor

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        rule = self._scale_rule
        key = f"method.objectives.{self.scale_term}.scale"
        if rule["rule"] not in get_args(ScalePolicy):
            allowed = ", ".join(get_args(ScalePolicy))
            raise UserError(f"{key}.rule is '{rule['rule']}'.", f"{key}.rule", f"Use one of: {allowed}.")
        if not math.isfinite(rule["start"]) or (rule["rule"] == "divide" and rule["start"] <= 0):
            raise UserError(f"{key}.start is {rule['start']}.", f"{key}.start", "Give a temperature above 0.")
        number = torch.tensor([float(rule["start"])])
        if rule["learnt"]:
            self.scale_number = nn.Parameter(number)
        else:
            self.register_buffer("scale_number", number)

    @property
    def _scale_rule(self) -> Mapping[str, Any]:
        rule: Mapping[str, Any] = self.objective(self.scale_term)["scale"]
        return rule

    @property
    def logit_scale(self) -> torch.Tensor:
        """Factor of cosines."""
        rule = self._scale_rule
        low, high = rule["low"], rule["high"]
        if self.training and self.scale_number.requires_grad and not (low is None and high is None):
            with torch.no_grad():  # without this an optimiser could carry the number far beyond its bound
                self.scale_number.clamp_(low, high)
        return cosine_factor(self.scale_number, rule["rule"], low, high)


class PairContrast(ScaledMethod):
    """Base of methods with one symmetric contrast, `info_nce`.

    Options: `shared_texts` says what two images are to each other whose texts are equal: `positives`, or `negatives` as
    in plain CLIP.
    """

    nests = True

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.shares = chosen(self.config, "shared_texts", SHARED_TEXTS) == "positives"
        self.epsilon = float(self.objective("info_nce").get("epsilon", 0.0))
        if self.shares and self.epsilon:
            raise UserError(
                "info_nce.epsilon has no effect where pairs that share a text are positives.",
                "method.objectives.info_nce.epsilon",
                "Set it to 0, or method.options.shared_texts=negatives.",
            )

    def contrast(self, image: torch.Tensor, text: torch.Tensor, given: TextBatch) -> Term:
        """Return the contrast of unit vectors.

        Args:
            image: Of images.
            text: Of texts; row i belongs to image i.
            given: The texts.
        """
        scale = self.logit_scale
        if self.shares:
            same = text_numbers(given.texts, image.device)
            return self.over_prefixes(lambda x, y: shared_text_nce(x, y, same, scale), image, text)
        return self.over_prefixes(lambda x, y: info_nce(x, y, scale, epsilon=self.epsilon), image, text)
