"""torchvision's classifiers, defined here layer by layer, give their scores as FCNs."""

import itertools

import jax
import numpy as np
import pytest
from test_models import shapes

from deeplab_jax import importers, models
from deeplab_jax.models.googlenet import MODULES

torch = pytest.importorskip("torch")
nn = torch.nn
CLASSES = 7
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


class ConvBN(nn.Module):
    def __init__(self, inputs, features, size, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, features, size, stride, size // 2, bias=False)
        self.bn = nn.BatchNorm2d(features, eps=0.001)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    def __init__(self, inputs, plain, middle, wide, pooled):
        super().__init__()
        self.branch1 = ConvBN(inputs, plain, 1)
        self.branch2 = nn.Sequential(ConvBN(inputs, middle[0], 1), ConvBN(*middle, 3))
        self.branch3 = nn.Sequential(ConvBN(inputs, wide[0], 1), ConvBN(*wide, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvBN(inputs, pooled, 1))

    def forward(self, x):
        return torch.cat([getattr(self, f"branch{i}")(x) for i in (1, 2, 3, 4)], dim=1)


class GoogLeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            ConvBN(3, 64, 7, 2),
            ConvBN(64, 64, 1),
            ConvBN(64, 192, 3),
        )
        self.steps, inputs = ["conv1", 3, "conv2", "conv3", 3], 192
        for name, (plain, middle, wide, pooled) in MODULES.items():
            self.steps += [*{"4a": [3], "5a": [2]}.get(name, []), f"inception{name}"]
            setattr(self, f"inception{name}", Inception(inputs, plain, middle, wide, pooled))
            inputs = plain + middle[1] + wide[1] + pooled
        self.fc = nn.Linear(1024, CLASSES)

    def forward(self, x):
        for step in self.steps:
            if isinstance(step, int):
                x = nn.functional.max_pool2d(x, step, 2, ceil_mode=True)
            else:
                x = getattr(self, step)(x)
        return self.fc(x.mean(dim=(2, 3)))


def vgg16_bn():
    layers, inputs = [], 3
    for features in VGG16:
        if features:
            layers += [
                nn.Conv2d(inputs, features, 3, padding=1),
                nn.BatchNorm2d(features),
                nn.ReLU(),
            ]
            inputs = features
        else:
            layers.append(nn.MaxPool2d(2, 2))
    widths = (512 * 7 * 7, 4096, 4096, CLASSES)
    classifier = [
        layer
        for a, b in itertools.pairwise(widths)
        for layer in (nn.Linear(a, b), nn.ReLU(), nn.Dropout())
    ][:-2]
    modules = {"features": nn.Sequential(*layers), "classifier": nn.Sequential(*classifier)}
    return nn.ModuleDict(modules)


def randomised(module):
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            tensor.uniform_(0.2, 1.0, generator=generator)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0, float(np.prod(tensor.shape[1:])) ** -0.5, generator=generator)
    return module.eval()


def fcn_of(module, backbone, last):
    """(variables, network) with the classifier's last layer as the scores."""
    weights = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    network = models.build(
        "fcn", backbone, CLASSES, output_stride=32, decoder_output_stride=None, fc_channels=4096
    )
    variables = importers.load(weights, shapes(network))
    kernel = weights[f"{last}.weight"].T[None, None]
    variables["params"]["logits"] = {"kernel": kernel, "bias": weights[f"{last}.bias"]}
    return variables, network


def images():
    return np.random.default_rng(0).standard_normal((1, 224, 224, 3)).astype(np.float32)


@torch.no_grad()
def test_the_mean_of_googlenets_scores_is_the_classifiers_answer():
    module = randomised(GoogLeNet())
    variables, network = fcn_of(module, "googlenet", "fc")
    scores = jax.jit(network.apply)(variables, images())
    assert scores.shape == (1, 7, 7, CLASSES)
    expected = module(torch.from_numpy(images()).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(
        scores.mean(axis=(1, 2)), expected, atol=1e-4 * np.abs(expected).max()
    )


@pytest.mark.slow
@torch.no_grad()
def test_the_middle_score_of_vgg16_is_the_classifiers_answer():
    module = randomised(vgg16_bn())
    variables, network = fcn_of(module, "vgg16_bn", "classifier.6")
    scores = np.asarray(jax.jit(network.apply)(variables, images()))
    features = module["features"](torch.from_numpy(images()).permute(0, 3, 1, 2))
    expected = module["classifier"](features.flatten(1)).numpy()
    np.testing.assert_allclose(scores[:, 3, 3], expected, atol=1e-4 * np.abs(expected).max())
