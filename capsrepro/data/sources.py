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
}
