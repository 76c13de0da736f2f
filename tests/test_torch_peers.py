"""benchmarks/torch_peers.py computes what our models compute: else timing the two says nothing."""

import importlib
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import randomised, shapes

from deeplab_jax import models, ops
from deeplab_jax.models import mobilenet_v2, resnet

torch = pytest.importorskip("torch")
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
torch_peers = importlib.import_module("torch_peers")

CLASSES = 5
SIZE = (65, 65)
DENSE = {"separable": False}
BARE = {"atrous_rates": None}
RATES = (1, 2, 3)  # where none are named: the real ones reach beyond the features of a small image
GRAPHS = [
    ("v3", "mobilenet_v2", BARE),
    ("v3plus", "mobilenet_v2", {"align_corners": False}),
    ("v3plus", "mobilenet_v2", {"output_stride": 8}),
]
SLOW_GRAPHS = [
    ("v3", "mobilenet_v2", {}),
    ("v3plus", "mobilenet_v2", BARE),
    *(
        (name, backbone, {"output_stride": stride} | keywords)
        for stride in (8, 16)
        for name, backbone, keywords in [
            ("v3", "resnet_50", DENSE),
            ("v3plus", "resnet_101", DENSE),
            ("v3plus", "resnet_101", {}),
            ("v3plus", "xception_65", {}),
        ]
    ),
]


@pytest.fixture(autouse=True)
def one_thread():
    """Where other processes hold the cores, OpenMP's threads spend minutes waiting in turns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def graph_id(graph):
    name, backbone, keywords = graph
    return "-".join([name, backbone, *(f"{key}:{value}" for key, value in keywords.items())])


def pictures():
    return np.random.default_rng(1).standard_normal((2, *SIZE, 3))


def run(module, images):
    """The peer's logits [B, h, w, C] of images [B, H, W, 3]."""
    with torch.no_grad():
        return module(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()


def assert_equal(theirs, ours, name="logits"):
    scale = np.abs(ours).max()
    np.testing.assert_allclose(theirs / scale, ours / scale, rtol=0, atol=1e-9, err_msg=str(name))


@pytest.fixture
def shallow(fewest_layers, monkeypatch):
    """Both sides without what a backbone repeats."""
    few = {
        "resnet_50": partial(torch_peers.resnet, resnet.UNITS["resnet_50"]),
        "resnet_101": partial(torch_peers.resnet, resnet.UNITS["resnet_101"]),
        "xception_65": partial(torch_peers.xception, 1),
        "mobilenet_v2": partial(torch_peers.mobilenet_v2, mobilenet_v2.STAGES),
    }
    for name, make in few.items():
        _, *settings = torch_peers.BACKBONES[name]
        monkeypatch.setitem(torch_peers.BACKBONES, name, (make, *settings))


@pytest.mark.parametrize("backbone", torch_peers.BACKBONES)
def test_every_layer_has_its_peer(backbone):
    variables = shapes(models.build("v3plus", backbone, CLASSES))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    torch_peers.load_flax(torch_peers.build("v3plus", backbone, num_classes=CLASSES), variables)


@pytest.mark.parametrize(
    "graph",
    [
        *(pytest.param(graph, id=graph_id(graph)) for graph in GRAPHS),
        *(pytest.param(g, id=graph_id(g), marks=pytest.mark.slow) for g in SLOW_GRAPHS),
    ],
)
def test_peers_agree_in_evaluation_and_in_training(graph, shallow):
    """In float64: batch norm over few pixels turns float32's rounding into 1e-3 of the logits."""
    name, backbone, keywords = graph
    keywords = {"atrous_rates": RATES} | keywords
    images = pictures()
    with jax.enable_x64(True):
        ours = models.build(name, backbone, CLASSES, dtype="float64", **keywords)
        variables = randomised(shapes(ours, SIZE))
        variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)
        # Statistics that start at zero become the batch's times 1 - decay: the decay shows.
        started = variables | {
            "batch_stats": jax.tree.map(jnp.zeros_like, variables["batch_stats"])
        }

        @jax.jit
        def run_ours(variables, started, images):
            evaluated = ours.apply(variables, images)
            # Batch norm alone trains: dropout's random numbers are not the peer's.
            options = {"train_batch_norm": True, "mutable": ["batch_stats"]}
            return evaluated, *ours.apply(started, images, **options)

        evaluated, trained, updates = jax.device_get(run_ours(variables, started, images))

    theirs = torch_peers.build(name, backbone, num_classes=CLASSES, **keywords).double()
    torch_peers.load_flax(theirs, variables)
    assert_equal(run(theirs.eval(), images), evaluated)

    torch_peers.load_flax(theirs, started)
    theirs.train()
    theirs.aspp.dropout.p = 0.0
    assert_equal(run(theirs, images), trained)
    state = theirs.state_dict()
    statistics = jax.tree_util.tree_leaves_with_path(updates["batch_stats"])
    for path, leaf in statistics:
        *layer, statistic = (key.key for key in path)
        assert_equal(state[".".join([*layer, f"running_{statistic}"])].numpy(), leaf, path)
    assert len(statistics) == sum("running_" in key for key in state)


@pytest.fixture
def peer():
    return torch_peers.build("v3plus", "mobilenet_v2", num_classes=CLASSES).double()


def test_dropout_of_a_tenth_acts_in_training_alone(peer):
    images = pictures()
    still = run(peer.eval(), images)
    np.testing.assert_array_equal(still, run(peer, images))
    seen = []
    peer.aspp.dropout.train().register_forward_hook(lambda _, x, y: seen.append((*x, y)))
    assert np.abs(run(peer, images) - still).max() > 0
    ((before, after),) = seen
    kept = (after != 0)[before != 0]
    assert kept.double().mean() == pytest.approx(0.9, abs=0.03)


def test_channels_last_reaches_every_layer(peer):
    peer.eval().to(memory_format=torch.channels_last)
    strays = []

    def look(layer, inputs, output):
        for x in (*inputs, output):
            if not x.is_contiguous(memory_format=torch.channels_last):
                strays.append((layer, x.shape))

    layers = [layer for layer in peer.modules() if not list(layer.children())]
    for layer in layers:
        layer.register_forward_hook(look)
    run(peer, pictures())
    assert len(layers) > 100
    assert not strays


def test_variables_that_do_not_fit_are_refused():
    def tree():
        """What `nn.Conv2d(3, 2, 1)` called "logits" takes."""
        kernel, bias = np.ones((1, 1, 3, 2), np.float32), np.ones(2, np.float32)
        return {"params": {"logits": {"kernel": kernel, "bias": bias}}, "batch_stats": {}}

    module = torch.nn.ModuleDict({"logits": torch.nn.Conv2d(3, 2, 1)})
    torch_peers.load_flax(module, tree())
    assert all((leaf == 1).all() for leaf in module.parameters())

    more, less, other = tree(), tree(), tree()
    more["batch_stats"]["mean"] = np.ones(2, np.float32)
    with pytest.raises(ValueError, match="/batch_stats/mean"):
        torch_peers.load_flax(module, more)
    del less["params"]["logits"]["bias"]
    with pytest.raises(ValueError, match="/params/logits/bias"):
        torch_peers.load_flax(module, less)
    other["params"]["logits"]["bias"] = np.ones(1, np.float32)
    with pytest.raises(ValueError, match=r"/params/logits/bias is \(1,\), logits.bias \(2,\)"):
        torch_peers.load_flax(module, other)


@pytest.mark.parametrize("stride", [8, 16])
def test_the_atrous_rates_follow_the_output_stride(stride):
    aspp = torch_peers.build("v3", "mobilenet_v2", output_stride=stride, separable=False).aspp
    rates = [getattr(aspp, name).conv.dilation[0] for name in ("atrous1", "atrous2", "atrous3")]
    assert tuple(rates) == ops.default_atrous_rates(stride)
    assert not hasattr(aspp, "atrous4")


def test_graphs_without_a_peer_are_refused():
    with pytest.raises(ValueError, match="no peer of v2 on resnet_101"):
        torch_peers.build("v2", "resnet_101")
