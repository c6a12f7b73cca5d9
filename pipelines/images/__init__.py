"""Images: sources of images, generated scenes, download, and image shards with the crops taken of them.

May import `pipelines.{errors, config, core}`, `infra` and `model.vision`. Downloads reach the network; shards
are read and written on local disk and in object stores. No accelerator, and importing the room brings no
torch.
"""

from dualtoken.pipelines.images.shards import ImageShard, ImageShardWriter, ShardRow
from dualtoken.pipelines.images.url_table import UrlTable

__all__ = ["ImageShard", "ImageShardWriter", "ShardRow", "UrlTable"]
