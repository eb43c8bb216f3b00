"""Parameters and multiply-accumulates of every network in the table of the specification (section 9)."""

import pytest
from mindspore.nn.utils import no_init_parameters

from src.models.backbones.swin import swin_base, swin_large, swin_small, swin_tiny
from src.models.backbones.vit import vit_base, vit_large, vit_small, vit_tiny
from src.models.heads.ecenet import ECENetHead
from src.models.heads.ecenet_parts import POOL_GRIDS, largest_pool_grid

LARGE_TAPS = {"taps": (6, 12, 18, 24)}

# backbone, its arguments, image side, K, preset, E, then the columns of the table: parameters and GMAC of head and
# backbone, total parameters in millions and total GMAC. Those of the head are without the neck, the totals with it.
ROWS = [
    (vit_tiny, {}, 512, 150, "iso16", 128, 1993516, 1.689, 5682624, 10.419, 7.68, 12.11),
    (vit_tiny, {}, 512, 150, "iso16", 256, 6579244, 5.473, 5682624, 10.419, 12.26, 15.89),
    (vit_small, {}, 512, 150, "iso16", 256, 7558444, 6.358, 21982080, 31.709, 29.54, 38.07),
    (vit_base, {}, 512, 150, "iso16", 256, 11065132, 9.486, 86431488, 106.904, 97.50, 116.39),
    (vit_large, LARGE_TAPS, 640, 150, "iso16", 256, 14549804, 19.514, 304735232, 610.271, 319.29, 629.79),
    (vit_base, {}, 512, 150, "iso8", 256, 11616044, 17.407, 86431488, 106.904, 98.05, 124.31),
    (vit_large, LARGE_TAPS, 640, 150, "iso8", 256, 15100716, 31.891, 304735232, 610.271, 319.84, 642.16),
    (vit_tiny, {}, 512, 150, "iso8", 128, 2137900, 3.703, 5682624, 10.419, 7.82, 14.12),
    (vit_small, {}, 512, 150, "iso8", 256, 8109356, 14.279, 21982080, 31.709, 30.09, 45.99),
    (vit_tiny, {}, 512, 150, "pyr", 128, 2210092, 16.797, 5682624, 10.419, 8.34, 28.12),
    (vit_small, {}, 512, 150, "pyr", 256, 8384812, 64.505, 21982080, 31.709, 32.14, 99.84),
    (vit_base, {}, 512, 150, "pyr", 256, 11891500, 81.121, 86431488, 106.904, 105.40, 202.52),
    (vit_large, LARGE_TAPS, 640, 150, "pyr", 256, 15376172, 152.278, 304735232, 610.271, 332.70, 802.81),
    (vit_base, {}, 480, 59, "iso16", 256, 10872182, 8.041, 86336256, 91.902, 97.21, 99.94),
    (vit_large, LARGE_TAPS, 480, 59, "iso16", 256, 14356854, 10.759, 304018432, 312.312, 318.38, 323.07),
    (vit_large, LARGE_TAPS, 480, 60, "iso16", 256, 14357624, 10.763, 304018432, 312.312, 318.38, 323.07),
    (vit_large, LARGE_TAPS, 512, 171, "iso16", 256, 14565974, 12.657, 304145408, 361.583, 318.71, 374.24),
    (swin_tiny, {"window": 7}, 512, 150, "hierarchical", 256, 8694988, 59.190, 27520698, 25.503, 36.22, 84.69),
    (swin_small, {"window": 7}, 512, 150, "hierarchical", 256, 8694988, 59.190, 48838602, 49.222, 57.53, 108.41),
    (swin_base, {"window": 12}, 640, 150, "hierarchical", 256, 9888428, 93.847, 86880376, 148.498, 96.77, 242.35),
    (swin_large, {"window": 12}, 640, 150, "hierarchical", 256, 13189228, 97.794, 195201204, 326.820, 208.39, 424.61),
    (swin_large, {"window": 12}, 480, 59, "hierarchical", 256, 12996278, 53.738, 195201204, 187.700, 208.20, 241.44),
]
NECKS = {192: (0.443, 0.906), 384: (1.771, 3.624), 768: (7.082, 14.496), 1024: (12.588, 40.265)}  # D: M, GMAC


def row_name(row: tuple) -> str:
    return f"{row[0].__name__}-{row[2]}-K{row[3]}-{row[4]}-E{row[5]}"


def build(row: tuple) -> tuple:
    """Backbone and head of a row, without initial values: even the largest is then built in a fraction of a second."""
    builder, options, side, classes, preset, width = row[:6]
    with no_init_parameters():
        backbone = builder((side, side), **options)
        head = ECENetHead(backbone.channels, backbone.grids, classes, channels=width, num_heads=4, preset=preset)
    return backbone, head


def parameters(cell) -> int:
    return sum(p.size for p in cell.trainable_params())


@pytest.mark.parametrize("row", ROWS, ids=row_name)
def test_parameters_are_those_of_the_specification(row):
    backbone, head = build(row)
    tap_norms = parameters(backbone.norms) if row[0].__name__.startswith("vit") else 0  # counted with the head there
    neck = parameters(head.neck) if row[4] == "pyr" else 0
    assert parameters(head) - neck + tap_norms == row[6]
    assert parameters(backbone) - tap_norms == row[8]
    assert (parameters(backbone) + parameters(head)) / 1e6 == pytest.approx(row[10], abs=0.0051)
    if neck:
        assert neck / 1e6 == pytest.approx(NECKS[backbone.width][0], abs=0.00051)


@pytest.mark.parametrize("row", ROWS, ids=row_name)
def test_operations_are_those_of_the_specification(row):
    backbone, head = build(row)
    neck = NECKS[backbone.width][1] if row[4] == "pyr" else 0.0
    assert head.count_macs() / 1e9 - neck == pytest.approx(row[7], abs=0.0011)
    assert backbone.count_macs() / 1e9 == pytest.approx(row[9], abs=0.00051)
    assert (backbone.count_macs() + head.count_macs()) / 1e9 == pytest.approx(row[11], abs=0.0051)


def test_three_levels():
    row = (vit_base, {"taps": (6, 8, 12)}, 512, 150, "iso16", 256)
    backbone, head = build(row)
    assert parameters(head) + parameters(backbone.norms) == 8048684
    assert head.count_macs() / 1e9 == pytest.approx(6.932, abs=0.00051)


def test_unused_modules_have_no_parameters():
    _, full = build(ROWS[0])
    with no_init_parameters():
        bare = ECENetHead(
            full.in_channels, full.grids, 150, channels=128, fr=False, num_rounds=0, updater="none", mask_prior="none"
        )
    laterals, ece, code = 4 * 192 * 128, 128 * 128 // 4 + 128 * 150, 219 * 128 + 128
    assert parameters(bare) == laterals + ece + code + 9 * 4 * 128**2 + 2 * 128 + 128 * 150 + 150
    macs = 1024 * (4 * 192 * 128 + ece + 9 * 4 * 128**2 + 128 * 150) + 150 * 219 * 128
    assert bare.count_macs() == macs


def test_kept_embeddings_need_neither_updaters_nor_new_codes():
    _, full = build(ROWS[0])
    with no_init_parameters():
        kept = ECENetHead(full.in_channels, full.grids, 150, channels=128, updater="none")
    code, updater = 219 * 128 + 128, 5 * 128**2 + 11 * 128
    assert parameters(full) - parameters(kept) == 3 * (code + updater)
    assert full.count_macs() - kept.count_macs() == 3 * (150 * 219 * 128 + 5 * 150 * 128**2)


@pytest.mark.parametrize("classes, side, length", [
    (19, 5, 75), (21, 5, 75), (59, 7, 99), (60, 7, 99), (150, 13, 219), (171, 13, 219),
])  # fmt: skip
def test_descriptor_sizes(classes, side, length):
    assert largest_pool_grid(classes, 1.0) == side
    assert sum(n * n for n in (*POOL_GRIDS, side)) == length
