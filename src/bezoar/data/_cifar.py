"""CIFAR-10 and CIFAR-100 from parquet files in Hugging Face's layout."""

from __future__ import annotations

from pathlib import Path

from bezoar.data._files import find
from bezoar.data._images import ImageSet, read_table
from bezoar.data.dataset import Dataset, Samples
from bezoar.errors import DataError

#: Alternative names of each file: ours, and that of the hub's files.
WANTED = {split: (f"{split}.parquet", f"{split}-00000-of-00001.parquet") for split in ("train", "test")}


def load_parquet(images: ImageSet, folder: Path, verify: bool) -> Dataset | None:
    """The data set in ``folder``, or None if one of its files is not there. Raises DataError for a damaged one.

    Not held to a checksum: parquet files of the same content differ. ``verify`` checks sizes and class counts.
    """
    train, test = (find(folder, names) for names in WANTED.values())
    if train is None or test is None:
        return None
    return images.dataset(
        _samples(train, images, images.rows[0] if verify else None),
        _samples(test, images, images.rows[1] if verify else None),
    )


def _samples(path: Path, images: ImageSet, rows: int | None) -> Samples:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({error})") from error
    return read_table(table, path, images, rows)


CIFAR10 = ImageSet(
    "cifar10",
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    shape=(3, 32, 32),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    rows=(50_000, 10_000),
    hub="uoft-cs/cifar10",
    balanced=True,
    augmentation="crop-flip",
)

_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

CIFAR100 = ImageSet(
    "cifar100",
    tuple(_FINE.split()),
    shape=(3, 32, 32),
    mean=(0.5071, 0.4866, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    rows=(50_000, 10_000),
    hub="uoft-cs/cifar100",
    label="fine_label",
    balanced=True,
    augmentation="crop-flip",
)
