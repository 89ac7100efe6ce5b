"""The folds, the short trainings, and the opinions of a network in a file."""

import io
from dataclasses import replace

import numpy as np
import pytest
import small_digits
import torch
from PIL import Image
from sklearn.metrics.pairwise import cosine_distances

from seresnext.data.formats import open_reader
from seresnext.distributed import World
from seresnext.doctor import network
from seresnext.doctor.images import Collection
from seresnext.doctor.network import Networks, ask, check_known, cross_validate, deal_folds, distances, short_recipe
from seresnext.errors import DataError, UsageError
from seresnext.models import LoadedWeights, create_model, registry

CPU = torch.device("cpu")


@pytest.fixture
def photos(tiny_image_folder, monkeypatch):
    """36 images of three classes, and networks of 20,000 weights."""
    monkeypatch.setattr(registry, "create_model", small_digits.small)
    return Collection({split: open_reader(tiny_image_folder(), split) for split in ("train", "val")})


def test_folds_are_even_and_keep_copies_together():
    labels = np.repeat([0, 1, 2], [40, 13, 2])
    groups = np.arange(55)
    fold = deal_folds(labels, groups, 4)
    for label in (0, 1):
        counts = np.bincount(fold[labels == label], minlength=4)
        assert counts.max() - counts.min() <= 1
    assert fold[:40].tolist() != sorted(fold[:40].tolist())  # Files of one day have neighbouring names.
    groups[[3, 45, 50]] = 99
    groups[[7, 8]] = 7
    together = deal_folds(labels, groups, 4)
    assert len({*together[[3, 45, 50]]}) == len({*together[[7, 8]]}) == 1
    assert (together == fold).sum() >= 52


def test_distances_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    known, features = rng.random((30, 8)), rng.random((5, 8))
    expected = np.sort(cosine_distances(features, known))[:, :10].mean(1)
    np.testing.assert_allclose(distances(known, features), expected / np.median(expected))
    expected = np.sort(cosine_distances(known))[:, 1:11].mean(1)  # Without the image itself.
    np.testing.assert_allclose(distances(known), expected / np.median(expected))
    assert len(distances(known[:3])) == 3


def test_the_recipe_of_a_short_training(photos):
    for count, batch, length in ((16_000, 32, 4000), (9, 9, 100)):
        recipe = short_recipe(photos, Networks(CPU), World(), count)
        assert (recipe.batch.global_size, recipe.length.steps(1)) == (batch, length)
        assert (recipe.model.num_classes, recipe.data.image_size) == (3, 64)
    assert short_recipe(photos, Networks(CPU, image_size=32), World(), 9).data.image_size == 32


@pytest.mark.full
def test_each_image_is_judged_by_a_network_without_it(photos, monkeypatch):
    """The networks learn the gradients of three classes. An image with a wrong label is judged by its content.

    The same images get the same opinions.
    """
    monkeypatch.setattr(network, "_FEWEST_STEPS", 20)
    true, trained = photos.labels.copy(), []
    photos.labels[2] = (true[2] + 1) % 3
    real = network.train
    monkeypatch.setattr(
        network, "train", lambda *args: (trained.append({*map(args[1].name, range(24))}), real(*args))[1]
    )
    (probabilities, found), again = (
        cross_validate(photos, np.arange(36), Networks(CPU, folds=3, image_size=32)) for _ in range(2)
    )
    np.testing.assert_array_equal(again[0], probabilities)
    np.testing.assert_array_equal(again[1], found)
    assert [len(names) for names in trained] == [24] * 6
    assert trained[0] | trained[1] == trained[1] | trained[2] == {*map(photos.name, range(36))}
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (probabilities.argmax(1) == true).mean() > 0.8
    assert found.shape == (36,)


def test_the_opinions_of_a_file(photos, tmp_path, monkeypatch):
    """The network has the classes in another order, and one more."""
    names = ["class_2", "other", "class_0", "class_1"]
    model = create_model("seresnext26", num_classes=4)
    loaded = LoadedWeights("a file", dict(model.state_dict()))
    monkeypatch.setattr(network, "class_names", lambda weights: names)
    monkeypatch.setattr(network, "build_pretrained", lambda weights: model)
    networks = Networks(CPU, loaded, folds=0, image_size=32)
    check_known(photos, loaded)
    probabilities, found = ask(photos, loaded, networks)
    image = replace(loaded.preprocessing, image_size=32)(Image.open(io.BytesIO(photos.read(7))))
    with torch.inference_mode():
        logits = (model.eval()(image[None]) + model(image.flip(2)[None]))[0] / 2
    np.testing.assert_allclose(probabilities[7], logits[[2, 3, 0]].softmax(0), rtol=1e-3)
    assert (probabilities.shape, found.shape) == ((36, 3), (36,))
    monkeypatch.setattr(Collection, "read", lambda *_: b"a text")
    with pytest.raises(DataError, match="a text"):
        ask(photos, loaded, networks)
    monkeypatch.setattr(network, "class_names", lambda weights: [*names[:3], "x"])
    with pytest.raises(UsageError, match=r"a file does not know the classes class_1; with --folds"):
        check_known(photos, loaded)


def test_trainings_start_from_the_weights(photos, monkeypatch):
    monkeypatch.setattr(network, "_FEWEST_STEPS", 1)
    monkeypatch.setattr(registry, "create_model", create_model)
    few, model = photos.take(np.arange(0, 36, 6)), create_model("seresnext26", num_classes=5)
    loaded = LoadedWeights("a file", dict(model.state_dict()))
    networks = Networks(CPU, loaded, folds=2, image_size=32)
    assert networks.decoding.exif_rotation
    assert not Networks(CPU, loaded, folds=0).decoding.exif_rotation
    recipe = short_recipe(few, networks, World(), len(few))
    assert (recipe.length.count, recipe.optimizer.lr) == (4, 0.005)
    recipe = recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"lr": 1e-12})})
    trained = network.train(recipe, few, loaded, World(), lambda _: None).state_dict()
    for name, value in model.named_parameters():
        if not name.startswith("last_linear"):
            torch.testing.assert_close(trained[name], value.detach(), rtol=1e-5, atol=1e-6)
