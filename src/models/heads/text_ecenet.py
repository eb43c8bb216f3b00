"""ECENet whose classes are told by text: class masks by name (ours).

Letters: B batch, K classes, D width of a text vector, E decoder width, S levels.
"""

from collections.abc import Mapping

from mindspore import nn

from src.models.heads.ecenet import ECENetHead
from src.models.heads.ecenet_parts import POOL_GRIDS, ClassEmbedding, ClassMask
from src.models.heads.text import TextConv, TextEmbedding, TextLinear, text_parameters


class TextECENetHead(ECENetHead):
    """ECENet's head, no layer of which depends on what the classes are or how many: another table of text serves.

    First masks, pixel classifier and confidences are cosines with the text divided by the temperature. The class
    embeddings of the coarsest level, from which all others are updated, are a linear map of the text, where ECENet has
    a code of the pooled masks; the code of the finer levels pools to grids that do not grow with the number of classes.

    Args:
        in_channels, grids, num_classes: as of `ECENetHead`.
        text_width, temperature: D, see `Similarity`.
        options: of `ECENetHead`.
    """

    def __init__(self, in_channels, grids, num_classes: int, text_width: int, temperature: float, **options) -> None:
        super().__init__(in_channels, grids, num_classes, **options)
        classes = (num_classes, text_width, True, temperature)
        first_mask = ClassMask(self.channels, num_classes, self.class_mask.group.group)
        first_mask.classify = TextConv(self.channels, *classes, bias=False)
        self.class_mask = first_mask  # assigned when complete: that is when parameters get their names
        self.classifier = TextConv(self.channels, *classes)
        if self.mask_prior != "none":
            self.confidence = TextLinear(self.channels, *classes)
        embed_from = options.get("embed_from", "layout")
        finer = self.grids[self.first_round : -1] if self.updater != "none" else ()
        self.embeddings = nn.CellList(
            [ClassEmbedding(grid, self.channels, POOL_GRIDS, embed_from) for grid in finer]
            + [TextEmbedding(num_classes, text_width, self.channels)]
        )

    def class_parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """Names of the parameters to start afresh where weights of `shapes`, by name, are of other classes."""
        return text_parameters(self)

    def count_macs(self) -> int:
        """Multiply-accumulates of one image: ECENet's, and the projections to the text's width."""
        width, e, k = self.classifier.similarity.text.shape[1], self.channels, self.num_classes
        outputs, coarsest = (a * b for a, b in (self.output_grid, self.grids[-1]))
        projected = (outputs + coarsest + (k if self.mask_prior != "none" else 0)) * width * (e + k)
        plain = (outputs + coarsest + (k if self.mask_prior != "none" else 0)) * e * k
        return super().count_macs() + projected - plain


def text_ecenet(
    in_channels, grids, num_classes, *, text_width: int = 512, temperature: float = 0.07, **kwargs
) -> ECENetHead:
    """`TextECENetHead`, with the options of `ECENetHead`."""
    return TextECENetHead(in_channels, grids, num_classes, text_width, temperature, **kwargs)
