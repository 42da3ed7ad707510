"""The stem: ImageNet's weights, its feature maps and their statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from skimage import data
from timm.data import ImageNetInfo

from glia_rt.errors import BundleError, UsageError
from glia_train.stem import STEMS, Stem, statistics

LITE0 = "efficientnet_lite0"


@pytest.fixture(scope="module")
def stem() -> Stem:
    stem = Stem(LITE0)
    stem.load("package")
    return stem.eval()


def pixels_of(name: str) -> torch.Tensor:
    picture = Image.fromarray(getattr(data, name)()).resize((224, 224), Image.Resampling.BICUBIC)
    return (torch.from_numpy(np.array(picture)).float().permute(2, 0, 1)[None] - 127) / 128


def classifier(stem: Stem) -> torch.nn.Module:
    """timm's whole classifier, with batch normalisation and the weights of the package."""
    model = timm.create_model(STEMS[LITE0].model, pretrained=False)
    model.load_state_dict(stem._from_file(stem._file("package")))
    return model.eval()


@pytest.mark.parametrize(("picture", "name"), [("chelsea", "Egyptian cat"), ("coffee", "espresso")])
def test_the_packages_weights_name_photographs(stem: Stem, picture: str, name: str) -> None:
    model, config = classifier(stem), STEMS[LITE0]
    assert (config.mean[0], config.std[0]) == (127 / 255, 128 / 255)
    with torch.inference_mode():
        best = model(pixels_of(picture)).argmax().item()
    assert ImageNetInfo().index_to_description(best) == name


def test_folding_leaves_the_feature_maps_as_they_are(stem: Stem) -> None:
    model, pixels = classifier(stem), torch.cat([pixels_of("chelsea"), pixels_of("coffee")])
    with torch.inference_mode():
        maps, expected = stem(pixels), model.bn1(model.conv_stem(pixels))
        for stage, block in enumerate(model.blocks):
            expected = block(expected)
            if stage in (1, 2, 4, 6):
                found = maps[(1, 2, 4, 6).index(stage)]
                assert float((found - expected).abs().max()) < 2e-5 * float(expected.abs().max())
    assert [tuple(one.shape[1:]) for one in maps] == [(24, 56, 56), (40, 28, 28), (112, 14, 14), (320, 7, 7)]
    assert not any("running" in name for name, _ in stem.named_buffers())
    assert stem.channels == [24, 40, 112, 320]


def test_the_weights_come_from_any_file_in_the_order_of_layers(stem: Stem, tmp_path: Path) -> None:
    state = classifier(stem).state_dict()
    torch.save({f"other.{i}": value for i, value in enumerate(state.values()) if value.ndim}, tmp_path / "own.pth")
    other = Stem(LITE0)
    assert not torch.equal(other.stages.conv_stem.weight, stem.stages.conv_stem.weight)
    other.load(str(tmp_path / "own.pth"))
    torch.testing.assert_close(other.state_dict(), stem.state_dict(), rtol=0, atol=0)


def test_weights_of_another_network(tmp_path: Path, stem: Stem) -> None:
    torch.save(timm.create_model("resnet18", pretrained=False).state_dict(), tmp_path / "other.pth")
    (tmp_path / "none.pth").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    state = classifier(stem).state_dict()
    torch.save({key: state[key] for key in list(state)[:-1]}, tmp_path / "short.pth")
    for name in ("other", "none", "list", "short"):
        with pytest.raises(BundleError, match=f"{name}.pth: not weights of tf_efficientnet_lite0"):
            Stem(LITE0).load(str(tmp_path / f"{name}.pth"))
    with pytest.raises(UsageError, match=r"no such file. Give package .*, hub .*, random, or the path"):
        Stem(LITE0).load(str(tmp_path / "gone.pth"))
    with pytest.raises(UsageError, match="there is no stem 'lite9'; there are efficientnet_lite0"):
        Stem("lite9")


def test_statistics_are_means_and_deviations() -> None:
    rng = np.random.default_rng(0)
    maps = [rng.normal(3, 2, (2, 5, 8, 8)).astype(np.float32), rng.normal(-1, 1, (2, 3, 4, 4)).astype(np.float32)]
    found = statistics([torch.from_numpy(one) for one in maps]).numpy()
    expected = np.concatenate([part for one in maps for part in (one.mean((2, 3)), one.std((2, 3)))], axis=1)
    assert found.shape == (2, 16)
    np.testing.assert_allclose(found, expected, atol=1e-4)  # MIN_VARIANCE is added under the root


def test_the_deviation_of_an_even_map_has_a_gradient() -> None:
    even = torch.ones(1, 2, 4, 4, requires_grad=True)
    statistics([even]).sum().backward()
    assert torch.isfinite(even.grad).all()
