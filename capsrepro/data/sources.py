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


_PENDING = "0" * 64  # replaced before this is released


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
    "cifar10": (
        Source(
            dataset="cifar10",
            name="cifar-10-binary.tar.gz",
            mirrors=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            size_bytes=170_052_171,
            licence="",
            citation="",
        ),
    ),
    "cifar10-jpeg": (
        Source(
            "cifar10-jpeg75",
            "cifar10_jpegs_official_order.tar.xz",
            (),
            _PENDING,
            18_416_440,
            "",
            "",
        ),
    ),
    "svhn": tuple(
        Source(
            "svhn", name, (f"http://ufldl.stanford.edu/housenumbers/{name}",), _PENDING, 1, "", ""
        )
        for name in ("train_32x32.mat", "test_32x32.mat")
    ),
    "smallnorb": tuple(
        Source("smallnorb", f"smallnorb-5x{part}-{kind}.mat.gz", (), _PENDING, 1, "", "")
        for part in ("46789x9x18x6x2x96x96-training", "01235x9x18x6x2x96x96-testing")
        for kind in ("dat", "cat", "info")
    ),
    "affnist": (Source("affnist", "test.mat.zip", (), _PENDING, 1, "", ""),),
}
