"""Images in: labelled uint8 images in memory, and the places they come from."""

from cifarkit.data.dataset import ImageDataset
from cifarkit.data.features import FeatureLoader
from cifarkit.data.loader import Loader
from cifarkit.data.mixed import MixedLoader
from cifarkit.data.named import NAMED, load
from cifarkit.data.pictures import image_folder, read_images
from cifarkit.data.shapes import shapes
from cifarkit.data.sources import cifar10, cifar100, load_npz

__all__ = [
    "NAMED",
    "FeatureLoader",
    "ImageDataset",
    "Loader",
    "MixedLoader",
    "cifar10",
    "cifar100",
    "image_folder",
    "load",
    "load_npz",
    "read_images",
    "shapes",
]
