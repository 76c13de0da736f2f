"""The CRF against the exact mean field, pydensecrf's own answers, and what may go wrong."""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from conftest import GOLDEN, SHARED

from deeplab_jax import crf
from deeplab_jax.crf import dense, inference

NAMES = ("w1", "sigma_alpha", "sigma_beta", "w2", "sigma_gamma")
FIXTURES = (
    "public_coffee_120x160_c5",
    "public_astronaut_120x160_c21",
    "public_astronaut_120x160_pyd",
    "public_chelsea_180x240_c8",
)


def fixture(name):
    """(image, probabilities, parameters, the file)."""
    paths = (GOLDEN / "crf" / f"{name}.npz", SHARED / "fixtures" / "crf" / f"{name}.npz")
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        pytest.skip(f"{name} is not here")
    with np.load(path) as file:
        found = dict(file)
    probs = jax.nn.softmax(found["logits"].astype(np.float32))
    return found["image"], probs, dict(zip(NAMES, found["params"].tolist())), found


def compiled(function, method):
    """In fast machine code, which the tests' own setting is not; "fast" runs less than it takes."""
    level = 0 if method == "fast" else 3
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": level})


def run(image, probs, method=None, **options):
    program = compiled(lambda i, p: crf.mean_field(i, p, method=method, **options), method)
    return program(image, probs)


def wrong(labels, truth):
    return 100 * float(np.mean(np.asarray(labels) != truth))


@pytest.fixture(params=crf.METHODS)
def method(request, monkeypatch):
    """Each method; "fast" with its shortcuts, which these small images would not get."""
    monkeypatch.setattr(inference, "SMALL", 0)
    return request.param


def scene(height=24, width=33, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 40, np.uint8)
    image[:, width // 2 :] = (200, 120, 60)
    image += rng.integers(0, 9, image.shape).astype(np.uint8)
    probs = rng.dirichlet(np.ones(classes), (height, width)).astype(np.float32)
    return image, probs


@pytest.mark.parametrize("name", FIXTURES)
def test_exact_is_the_exact_mean_field(name):
    image, probs, parameters, found = fixture(name)
    large = image.shape[0] > 120  # more pairs than are kept: all of them anew in every iteration
    q = run(image, probs, **parameters, method="exact", every=True, iterations=1 if large else 10)
    for iterations in (1,) if large else (1, 5, 10):
        expected = found[f"exact_q{iterations}"].astype(np.float32)
        # The file holds multiples of 1/4096.
        np.testing.assert_allclose(q[iterations - 1], expected, atol=1e-3)
        two = np.sort(expected, axis=-1)[..., -2:]
        clear = two[..., 1] - two[..., 0] > 0.002
        labels = np.asarray(q[iterations - 1].argmax(-1))
        np.testing.assert_array_equal(labels[clear], found[f"exact_label{iterations}"][clear])


@pytest.mark.parametrize("name", FIXTURES)
def test_modes_are_closer_to_exact_than_the_lattice(name):
    image, probs, parameters, found = fixture(name)
    labels = run(image, probs, **parameters).argmax(-1)
    lattice = wrong(found["pydensecrf_label10"], found["exact_label10"])
    assert wrong(labels, found["exact_label10"]) < min(lattice, 0.8)


@pytest.mark.parametrize("name", FIXTURES)
def test_fast_is_within_its_bound(name):
    image, probs, parameters, found = fixture(name)
    labels = run(image, probs, **parameters, method="fast").argmax(-1)
    assert wrong(labels, found["exact_label10"]) < 1.3


def test_its_shortcuts_are_within_its_bound(monkeypatch):
    monkeypatch.setattr(inference, "SMALL", 0)
    test_fast_is_within_its_bound("public_coffee_120x160_c5")


@functools.cache
def eight_cells():
    """(image, probabilities, options, the exact answer)"""
    image, probs = scene(30, 544)
    options = {"sigma_alpha": 38.0, "sigma_beta": 13.0, "w1": 3.0}
    return image, probs, options, run(image, probs, **options, method="exact")


@pytest.mark.parametrize("method", ["modes", "fast"], indirect=True)
@pytest.mark.parametrize("memory", [4e9, 1e5])
def test_fast_hears_only_what_is_within_reach(method, memory):
    """Of an image of eight cells, each window hears four."""
    image, probs, options, exact = eight_cells()
    q = run(image, probs, **options, method=method, memory=memory)
    assert 0.5 * float(jnp.abs(exact - q).sum(-1).mean()) < 0.015


@pytest.mark.parametrize("method", ["modes", "fast"], indirect=True)
@pytest.mark.parametrize("sigma_gamma", [1.0, 3.0])
def test_fast_goes_on_where_most_pixels_stay_in_doubt(method, sigma_gamma):
    rng = np.random.default_rng(0)
    image, probs = scene(96, 128)
    probs = np.asarray(jax.nn.softmax(0.4 * np.log(probs) + 0.1 * rng.normal(size=probs.shape)))
    options = {"w1": 2.0, "sigma_alpha": 30.0, "sigma_beta": 5.0, "w2": 1.0}
    options |= {"sigma_gamma": sigma_gamma}
    exact, q = (run(image, probs, **options, method=m) for m in ("exact", method))
    assert 0.5 * float(jnp.abs(exact - q).sum(-1).mean()) < 0.03


def test_the_last_of_every_iteration_is_the_answer(method):
    image, probs = scene(70, 80)
    last, every = (run(image, probs, method=method, every=every) for every in (False, True))
    assert every.shape == (10, 70, 80, 4)
    np.testing.assert_allclose(every[-1], last, atol=1e-5)


def test_the_calls_of_pydensecrf():
    """A matrix of -w1 on the diagonal is Potts' w1."""
    image, probs, parameters, found = fixture("public_coffee_120x160_c5")
    height, width, classes = probs.shape
    net = crf.DenseCRF2D(width, height, classes, method="exact")
    net.setUnaryEnergy(-np.log(np.asarray(probs)).reshape(-1, classes).T)
    net.addPairwiseGaussian(sxy=parameters["sigma_gamma"], compat=parameters["w2"])
    net.addPairwiseBilateral(
        sxy=(parameters["sigma_alpha"],) * 2,
        srgb=(parameters["sigma_beta"],) * 3,
        rgbim=image,
        compat=-parameters["w1"] * np.eye(classes),
    )
    q = net.inference(10)
    assert q.shape == (classes, height * width)
    expected = found["exact_q10"].astype(np.float32).reshape(-1, classes).T
    np.testing.assert_allclose(q, expected, atol=1e-3)


def test_widths_of_pydensecrf_are_x_y():
    image, probs = scene(20, 30)
    net = crf.DenseCRF2D(30, 20, 4, method="exact")
    net.setUnaryEnergy(-np.log(probs).reshape(-1, 4).T)
    net.addPairwiseGaussian(sxy=(5, 2), compat=3)
    net.addPairwiseBilateral(sxy=(40, 10), srgb=(9, 10, 11), rgbim=image, compat=4)
    ours = run(
        image,
        probs,
        w1=4,
        sigma_alpha=(10.0, 40.0),
        sigma_beta=(9.0, 10.0, 11.0),
        w2=3,
        sigma_gamma=(2.0, 5.0),
        method="exact",
    )
    np.testing.assert_allclose(net.inference(10).T.reshape(20, 30, 4), ours, atol=1e-4)


@pytest.mark.parametrize("name", ["NO_NORMALIZATION", "NORMALIZE_BEFORE", "NORMALIZE_AFTER"])
def test_normalizations_of_pydensecrf(name):
    image, probs = scene(7, 9)
    net = crf.DenseCRF2D(9, 7, 4, method="exact")
    net.setUnaryEnergy(-np.log(probs).reshape(-1, 4).T)
    net.addPairwiseBilateral(5, 9, image, 0.4, normalization=getattr(dense, name))
    y, x = np.mgrid[:7, :9]
    points = np.dstack([y / 5, x / 5, image / 9]).reshape(-1, 5)
    kernel = np.exp(-0.5 * ((points[:, None] - points) ** 2).sum(-1))
    degree = kernel.sum(1)
    kernel = {
        "NO_NORMALIZATION": kernel,
        "NORMALIZE_BEFORE": kernel / degree,
        "NORMALIZE_AFTER": kernel / degree[:, None],
    }[name]
    logits = np.log(probs).reshape(-1, 4)
    q = probs.reshape(-1, 4)
    for _ in range(3):
        q = np.exp(logits + 0.4 * kernel @ q)
        q /= q.sum(1, keepdims=True)
    np.testing.assert_allclose(net.inference(3).T, q, atol=1e-4)


def test_smoothness_alone_is_not_cut_short(monkeypatch):
    monkeypatch.setattr(inference, "SMALL", 0)
    _, probs = scene(50, 60)
    answers = []
    for method in ("exact", "fast"):
        net = crf.DenseCRF2D(60, 50, 4, method=method)
        net.setUnaryEnergy(-np.log(probs).reshape(-1, 4).T)
        net.addPairwiseGaussian(sxy=3, compat=3)
        answers.append(net.inference(5))
    np.testing.assert_allclose(*answers, atol=0.05)


def test_shortcuts_of_a_wide_kernel():
    """An image large enough for them."""
    image, probs, parameters, _ = fixture("public_chelsea_180x240_c8")
    parameters |= {"w1": 10.0, "sigma_alpha": 80.0, "sigma_beta": 13.0}
    modes, fast = (run(image, probs, **parameters, method=m).argmax(-1) for m in ("modes", "fast"))
    assert wrong(fast, modes) < 2


def test_wrong_calls_of_pydensecrf_are_refused():
    net = crf.DenseCRF2D(30, 20, 4)
    with pytest.raises(ValueError, match="setUnaryEnergy must come before"):
        net.inference(1)
    with pytest.raises(ValueError, match=r"takes \(labels, pixels\) \(4, 600\)"):
        net.setUnaryEnergy(np.zeros((600, 4)))
    with pytest.raises(ValueError, match=r"takes \(height, width, 3\)"):
        net.addPairwiseBilateral(3, 3, np.zeros((30, 20, 3), np.uint8), 1)
    with pytest.raises(ValueError, match="compat"):
        net.addPairwiseGaussian(3, np.ones(3))


def test_padding_and_batches_change_nothing(method):
    # "fast" cuts both into cells of 40 x 36 px.
    small, large = scene(40, 36), scene(80, 72, seed=1)
    images, probs = np.zeros((2, 80, 72, 3), np.uint8), np.full((2, 80, 72, 4), 0.25, np.float32)
    mask = np.zeros((2, 80, 72), bool)
    for i, (image, p) in enumerate((small, large)):
        height, width = image.shape[:2]
        images[i, :height, :width], probs[i, :height, :width] = image, p
        mask[i, :height, :width] = True
    batched = jax.vmap(lambda i, p, m: crf.mean_field(i, p, mask=m, method=method))
    batched = compiled(batched, method)
    together = batched(images, probs, mask)
    for got, (image, p) in zip(together, (small, large)):
        alone = run(image, p, method=method)
        far = np.abs(got[: image.shape[0], : image.shape[1]] - alone)
        # Rounding decides which of two modes as near a pixel joins; and the frame's size how many
        # pixels of "fast" may listen.
        assert far.mean() < (1e-2 if method == "fast" else 1e-4)


def test_blocks_within_a_memory_budget_give_the_same(method):
    image, probs = scene()
    whole, in_blocks = (run(image, probs, method=method, memory=m) for m in (4e9, 1e5))
    np.testing.assert_allclose(in_blocks, whole, atol=1e-5)


def test_gradients_are_those_of_finite_differences(method):
    image, probs = scene(8, 9)
    weight = np.random.default_rng(2).standard_normal(probs.shape)
    compatibility = np.eye(4) + 0.1

    # Widths move pixels from mode to mode, which no gradient sees; "fast" has many small ones.
    widths = {"sigma_alpha": jnp.float32(6), "sigma_beta": jnp.float32(9)}
    fixed = widths if method == "fast" else {}

    def loss(p, trained):
        options = {"iterations": 3, "method": method, "tile": 4, "modes": 4}
        q = crf.mean_field(image, p, **options, **fixed, **trained)
        return jnp.sum(q * weight.astype(np.float32))

    trained = jax.tree.map(jnp.float32, {"w1": 1.2, "w2": 0.7, "sigma_gamma": 2.0})
    trained |= {} if fixed else widths
    trained["compatibility"] = jnp.asarray(compatibility, jnp.float32)
    jax.test_util.check_grads(
        jax.jit(loss), (probs, trained), 1, modes=["rev"], atol=2e-2, rtol=2e-2
    )


def test_potts_is_the_identity():
    image, probs = scene()
    np.testing.assert_allclose(
        run(image, probs, compatibility=jnp.eye(4)),
        run(image, probs),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("what", "shape"),
    [
        ("nan", (12, 16, 3)),
        ("zero", (12, 16, 3)),
        ("void", (12, 16, 3)),
        ("constant", (12, 16, 3)),
        ("plain", (12, 16, 1)),
        ("plain", (1, 1, 3)),
        ("plain", (1, 5000, 2)),
    ],
)
def test_odd_inputs_give_probabilities(what, shape, method):
    height, width, classes = shape
    image, probs = scene(height, width, classes)
    mask = np.ones((height, width), bool)
    if what == "nan":
        probs[3:5] = np.nan
    elif what == "zero":
        probs[3:5] = 0
        probs[5, :, 1:] = 0
    elif what == "void":
        mask[:] = False
    elif what == "constant":
        image[:] = 7
    q = np.asarray(run(image, probs, mask=mask, method=method, iterations=2))
    assert q.shape == shape
    np.testing.assert_allclose(q.sum(-1), 1, atol=1e-5)


def test_wrong_calls_are_refused():
    image, probs = scene()
    with pytest.raises(ValueError, match="not one of modes, exact, fast"):
        crf.mean_field(image, probs, method="lattice")
    with pytest.raises(ValueError, match=r"takes \[H, W, 3\], \[H, W, C\]"):
        crf.mean_field(image[:5], probs)
    with pytest.raises(ValueError, match="mask"):
        crf.mean_field(image, probs, mask=np.ones(probs.shape[1::-1], bool))
    with pytest.raises(ValueError, match="compatibility"):
        crf.mean_field(image, probs, compatibility=np.eye(3))
