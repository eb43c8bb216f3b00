"""Eigensegments of images, their cache and the processes that make them (spec sazs, sections 6.1 and 6.5, case 10)."""

import os

import numpy as np
import pytest

from src.spectral import cache as module
from src.spectral.cache import (
    Cache,
    Job,
    find,
    load_or_make,
    make_all,
    open_cache,
    read_segments,
    require_entries,
    write_segments,
)
from src.spectral.options import SpectralOptions
from src.spectral.segments import decompose, segment_masks, upsample, with_trivial_vector
from tests.spectral_graphs import random_features, split_image

OPTIONS = SpectralOptions(features="backbone_k", patch=4, num_eigenvectors=3)
ABC = {"weights_sha256": "abc"}
GRID, SIZE = (6, 8), (27, 34)


def draw_image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def features_of(image: np.ndarray) -> np.ndarray:
    """Features that depend on the image, in the place of a network's."""
    return random_features(GRID[0] * GRID[1], seed=int(image[0, 0, 0]))


def jobs(count: int) -> list[Job]:
    return [Job(f"street/{i}", draw_image(i), features_of) for i in range(count)]


def test_segments_of_an_image_in_two_halves():
    image = np.repeat(np.repeat(split_image(), 4, 0), 4, 1)
    image = np.pad(image, ((0, 3), (0, 2), (0, 0)), "edge")
    options = SpectralOptions(features="color", patch=4, num_eigenvectors=1)
    found = decompose(image, None, options)
    assert found.meta["components"] == 2 and found.meta["image_size"] == [35, 34] and found.meta["max_residual"] < 1e-6
    assert found.vectors.shape == (1, 8, 8) and found.vectors.dtype == np.float32 and found.degree.shape == (8, 8)
    mask = segment_masks(found)[0]
    assert mask.shape == (35, 34)
    left = np.broadcast_to(np.arange(34) < 16, mask.shape)
    assert (mask == left).all() or (mask == ~left).all()


def test_maps_are_upsampled_patch_by_patch_and_repeat_the_edge():
    found = upsample(np.array([[1, 2], [3, 4]]), (5, 7), 2)
    assert found.tolist() == [[1, 1, 2, 2, 2, 2, 2]] * 2 + [[3, 3, 4, 4, 4, 4, 4]] * 3


def test_the_trivial_vector_is_left_out_or_counted():
    image = draw_image()
    without = decompose(image, features_of(image), OPTIONS)
    parity = SpectralOptions(features="backbone_k", patch=4, num_eigenvectors=4, skip_trivial=False)
    whole = decompose(image, features_of(image), parity)
    assert without.vectors.shape == (3, *GRID) and whole.vectors.shape == (4, *GRID)
    assert whole.values[0] == 0 and without.values[0] > 0
    np.testing.assert_array_equal(without.vectors, whole.vectors[1:])
    np.testing.assert_allclose(with_trivial_vector(without), whole.vectors, rtol=1e-6)
    assert with_trivial_vector(without).dtype == np.float32  # what exported graphs take
    flat = with_trivial_vector(without).reshape(4, -1)
    np.testing.assert_allclose(flat * without.degree.reshape(-1) @ flat.T, np.eye(4), atol=1e-5)


def test_colours_and_thresholds_change_the_graph():
    image, features = draw_image(), np.abs(features_of(draw_image()))
    kinds = [{"color_weight": 0.0}, {"color_weight": 10.0}, {"color_weight": 0.0, "center": True}]
    found = [decompose(image, features, SpectralOptions("backbone_k", 4, **kind)) for kind in kinds]
    for i in range(1, 3):
        assert np.abs(found[i].values - found[0].values).max() > 1e-3
    rank = decompose(image, features, SpectralOptions("backbone_k", 4, color_weight=0.0, threshold=False))
    np.testing.assert_allclose(rank.values, found[0].values, atol=1e-6)
    assert rank.meta["solver"] == "low_rank"


def test_case_10_two_runs_in_processes_are_equal_to_the_last_bit(tmp_path, monkeypatch):
    stored, threads = [], [os.environ.get(name) for name in module.THREADS]
    for run, workers in enumerate((1, 2)):
        cache = Cache(tmp_path / str(run), OPTIONS, ABC)
        made, residual = make_all(cache, jobs(3), 3, workers)
        assert made == 3 and 0 < residual < 1e-6
        stored.append({file.relative_to(cache.root): file.read_bytes() for file in cache.root.rglob("*.npz")})
    assert stored[0] == stored[1] and len(stored[0]) == 3
    assert [os.environ.get(name) for name in module.THREADS] == threads
    # a second start keeps what is there and makes what is not, or was made of other pixels
    cache = Cache(tmp_path / "0", OPTIONS, ABC)
    again = [*jobs(2), Job("street/2", draw_image(7), features_of)]
    monkeypatch.setattr(module, "ProcessPoolExecutor", Inline)
    assert make_all(cache, again, 3, 1)[0] == 1
    assert find(cache, "street/2", draw_image(7)) and find(cache, "street/2", draw_image(2)) is None


class Inline(module.ProcessPoolExecutor):
    """A pool without processes: the work is done where it is submitted."""

    def submit(self, function, *args):
        future = module.Future()
        future.set_result(function(*args))
        return future


def test_a_cache_belongs_to_its_options_and_weights(tmp_path):
    first = Cache(tmp_path, OPTIONS, ABC)
    others = [Cache(tmp_path, OPTIONS, {**ABC, "mean": 0}), Cache(tmp_path, SpectralOptions("backbone_k", 4), ABC)]
    assert len(first.folder.name) == 12 and len({first.folder, *(other.folder for other in others)}) == 3
    implied = SpectralOptions(features="backbone_k", patch=4, num_eigenvectors=3, color_weight=10.0)
    assert Cache(tmp_path, implied, ABC).folder == first.folder  # 10 is what null means there
    with pytest.raises(ValueError, match="leads out of the cache"):
        first.file("../x")


def test_a_miss_computes_and_stores_where_it_can(tmp_path):
    cache, job = Cache(tmp_path, OPTIONS), jobs(1)[0]
    bare = job._replace(features=None)
    with pytest.raises(FileNotFoundError, match="no eigensegments of street/0, .*tools/compute_segments.py"):
        load_or_make(cache, bare)
    with pytest.raises(FileNotFoundError, match="of 1 of 1 images in .*, the first is street/0; make them"):
        require_entries(cache, ["street/0"])
    made = load_or_make(cache, job)
    require_entries(cache, ["street/0"])
    stored = load_or_make(cache, bare)
    for ours, theirs in zip(made, stored, strict=True):
        np.testing.assert_equal(ours, theirs)
    assert made.meta["features"] == "backbone_k" and made.vectors.dtype == np.float32
    colours = Cache(tmp_path, SpectralOptions(features="color", patch=4))
    require_entries(colours, ["street/0"])  # nothing is needed to make it
    assert load_or_make(colours, bare).meta["features"] == "color" and colours.file("street/0").is_file()


def test_a_cache_is_found_by_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ProcessPoolExecutor", Inline)
    with pytest.raises(FileNotFoundError, match="no eigensegments in .*compute_segments.py"):
        open_cache(tmp_path)
    facts = {**ABC, "backbone": {"name": "vit", "taps": [2]}, "mean": [1.0, 2.0, 3.0]}
    first, second = Cache(tmp_path, OPTIONS, facts), Cache(tmp_path, OPTIONS, {**facts, "mean": [0.0, 2.0, 3.0]})
    make_all(first, jobs(1), 1, 1)
    assert open_cache(tmp_path) == open_cache(first.folder) and open_cache(tmp_path).folder == first.folder
    assert find(open_cache(tmp_path), "street/0", jobs(1)[0].image)
    make_all(second, [], 0, 1)
    assert open_cache(second.folder).network["mean"] == [0.0, 2.0, 3.0] and first.folder != second.folder
    with pytest.raises(ValueError, match="eigensegments of 2 settings: name one of"):
        open_cache(tmp_path)
    settings = second.folder / module.SETTINGS
    settings.write_text(settings.read_text().replace('"patch": 4', '"patch": 5'))
    with pytest.raises(ValueError, match="was made with other settings"):
        open_cache(second.folder)
    settings.write_text("[]")
    with pytest.raises(ValueError, match="holds no settings of eigensegments"):
        open_cache(second.folder)


def test_a_damaged_file_is_made_again_and_told(tmp_path, capsys):
    cache, job = Cache(tmp_path, OPTIONS), jobs(1)[0]
    made = load_or_make(cache, job)
    file = cache.file(job.name)
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    again = load_or_make(cache, job)
    assert "no readable eigensegments" in capsys.readouterr().out and file.read_bytes() == whole
    np.testing.assert_array_equal(made.vectors, again.vectors)


def test_damaged_files_are_refused(tmp_path):
    image = draw_image()
    segments = decompose(image, features_of(image), OPTIONS)
    write_segments(tmp_path / "a.npz", segments)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"b\.npz: no readable eigensegments"):
        read_segments(tmp_path / "b.npz")
    write_segments(tmp_path / "c.npz", segments._replace(values=segments.values[:1]))
    with pytest.raises(ValueError, match="wrong shape"):
        read_segments(tmp_path / "c.npz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "depth"}, "spectral.features is 'depth'; allowed: dino_k"), ({"solver": "x"}, "allowed: lanczos"),
        ({"patch": 0}, "spectral.patch is 0"), ({"link_weight": 0.0}, "link_weight above 0"),
        ({"features": "color", "threshold": False}, "threshold=false is for features alone"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SpectralOptions(**options)


def test_images_and_features_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="47 features for a grid of 6 x 8"):
        decompose(draw_image(), features_of(draw_image())[:47], OPTIONS)
    with pytest.raises(ValueError, match="features=backbone_k: no features"):
        decompose(draw_image(), None, OPTIONS)
    with pytest.raises(ValueError, match="holds no patch of 64"):
        decompose(draw_image(), None, SpectralOptions(features="color", patch=64))
