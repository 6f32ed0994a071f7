"""Every file that is ever downloaded, once: where from, what it must be, whose it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One file as its authors published it.

    Attributes:
        dataset: Folder it lies in, below `raw/` and below a mirror.
        name: File name, the same here and on every mirror.
        mirrors: Complete addresses, in the order in which they are tried.
        sha256: 64 hex digits.
        size_bytes: Exact size; no mirror may send a byte more.
        licence: Under which its authors published it.
        citation: What to cite when using it.
    """

    dataset: str
    name: str
    mirrors: tuple[str, ...]
    sha256: str
    size_bytes: int
    licence: str
    citation: str

    @property
    def key(self) -> str:
        """`dataset/name`: what messages and manifests call this file."""
        return f"{self.dataset}/{self.name}"


def _mnist(name: str, sha256: str, size_bytes: int) -> Source:
    return Source(
        dataset="mnist",
        name=name,
        mirrors=(
            f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}",
            f"https://storage.googleapis.com/cvdf-datasets/mnist/{name}",
        ),
        sha256=sha256,
        size_bytes=size_bytes,
        licence="CC BY-SA 3.0",
        citation=(
            "Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied to "
            "document recognition. Proceedings of the IEEE 86(11), 2278–2324, 1998."
        ),
    )


_CIFAR10_CITATION = (
    "A. Krizhevsky: Learning multiple layers of features from tiny images. Technical report, "
    "University of Toronto, 2009."
)


def _svhn(name: str, sha256: str, size_bytes: int) -> Source:
    return Source(
        dataset="svhn",
        name=name,
        # The server speaks plain http only; the hash is what vouches for the file.
        mirrors=(f"http://ufldl.stanford.edu/housenumbers/{name}",),
        sha256=sha256,
        size_bytes=size_bytes,
        licence="non-commercial use only",
        citation=(
            "Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu, A. Y. Ng: Reading digits in "
            "natural images with unsupervised feature learning. NIPS workshop on deep learning "
            "and unsupervised feature learning, 2011."
        ),
    )


def _smallnorb(part: str, kind: str, sha256: str, size_bytes: int) -> Source:
    name = f"smallnorb-5x{part}-{kind}.mat.gz"
    return Source(
        dataset="smallnorb",
        name=name,
        # Two spellings of one server: no second server has these bytes.
        mirrors=(
            f"https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/{name}",
            f"https://www.cs.nyu.edu/~ylclab/data/norb-v1.0-small/{name}",
        ),
        sha256=sha256,
        size_bytes=size_bytes,
        licence="research only; must not be sold",
        citation=(
            "Y. LeCun, F. J. Huang, L. Bottou: Learning methods for generic object recognition "
            "with invariance to pose and lighting. CVPR, 2004."
        ),
    )


_TRAINING, _TESTING = "46789x9x18x6x2x96x96-training", "01235x9x18x6x2x96x96-testing"

SOURCES: dict[str, tuple[Source, ...]] = {
    "mnist": (
        _mnist(
            "train-images-idx3-ubyte.gz",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            9_912_422,
        ),
        _mnist(
            "train-labels-idx1-ubyte.gz",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            28_881,
        ),
        _mnist(
            "t10k-images-idx3-ubyte.gz",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            1_648_877,
        ),
        _mnist(
            "t10k-labels-idx1-ubyte.gz",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            4_542,
        ),
    ),
    "affnist": (
        Source(
            dataset="affnist",
            name="test.mat.zip",
            mirrors=(
                "https://www.cs.toronto.edu/~tijmen/affNIST/32x/transformed/test.mat.zip",
                "http://www.cs.toronto.edu/~tijmen/affNIST/32x/transformed/test.mat.zip",
            ),
            sha256="2cde38ec83ee2ebfd7b901f8be5a09efb17a1bda04771f9b4905751eb945c01a",
            size_bytes=121_743_191,
            licence="not stated; derived from MNIST",
            citation="T. Tieleman: The affNIST dataset for machine learning. Toronto, 2013.",
        ),
    ),
    "cifar10": (
        Source(
            dataset="cifar10",
            name="cifar-10-binary.tar.gz",
            mirrors=(
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/"
                "cifar-10-binary.tar.gz",
            ),
            sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            size_bytes=170_052_171,
            licence="not stated; citation asked for",
            citation=_CIFAR10_CITATION,
        ),
    ),
    "cifar10-jpeg": (
        Source(
            dataset="cifar10-jpeg75",
            name="cifar10_jpegs_official_order.tar.xz",
            mirrors=(),  # ours, for trying code on photographs: only CAPSREPRO_MIRROR has it
            sha256="a1b38069e6109c249adbf5783cc66bfd60946d3a24c5f3ab95f392191381f7d9",
            size_bytes=18_416_440,
            licence="not stated; made from CIFAR-10",
            citation=_CIFAR10_CITATION,
        ),
    ),
    "svhn": (
        _svhn(
            "train_32x32.mat",
            "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
            182_040_794,
        ),
        _svhn(
            "test_32x32.mat",
            "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
            64_275_384,
        ),
    ),
    "smallnorb": (
        _smallnorb(
            _TRAINING,
            "dat",
            "5ffd6272a07d32695ee1082a26a41a93a37aab8c28da047f8c34ed348d214873",
            131_896_188,
        ),
        _smallnorb(
            _TRAINING,
            "cat",
            "2784e542c1922060691090952b6cd6278879a216c90f81476f0f00256d42cdaa",
            348,
        ),
        _smallnorb(
            _TRAINING,
            "info",
            "de7eb932ebe7a4ee16217fead60660d0eb3d23632c2f4d1c51f88c501c17bf32",
            71_052,
        ),
        _smallnorb(
            _TESTING,
            "dat",
            "cf7104eed3e51174d2f65b66d1e5878b9da233b886f161b0d88f4510ba2c7474",
            130_799_817,
        ),
        _smallnorb(
            _TESTING,
            "cat",
            "ecaf6d5bb8c3bc5eab9cf0258f6d2198dd474e016e374836fc097f2e5ff509ff",
            347,
        ),
        _smallnorb(
            _TESTING,
            "info",
            "16adf314226327ee006d1a44db8cfef52773c06c829951d5653a9f6f310248a2",
            10_428,
        ),
    ),
}
