"""Published facts about each dataset: URLs, checksums, counts, licences. Data only, so the import is fast.

Sources:
- UCF-101: arXiv:1212.0402 and https://www.crcv.ucf.edu/data/UCF101.php. Size and SHA-256 of the two zip files:
  tensorflow/datasets, url_checksums/ucf101.txt. Clips of the lists: counted in the lists.
- Kinetics-600: arXiv:1808.01340. URLs, and numbers of hosted clips: cvdfoundation/kinetics-dataset, and FiftyOne's
  page of the dataset (docs.voxel51.com/dataset_zoo/datasets/kinetics_600.html).
- MNIST: mirror and MD5 of the four files: pytorch/vision, torchvision/datasets/mnist.py. Published test clips of
  Moving MNIST: tensorflow/datasets, url_checksums/moving_mnist.txt.
- BAIR: arXiv:1710.05268. Size and SHA-256: tensorflow/datasets, url_checksums/bair_robot_pushing_small.txt. Clips:
  its catalog; a record file holds 256 clips, and there are 169 training files and 1 test file.
- Sky time-lapse: arXiv:1709.07592. Counts: the readme in the archive. URL: PKU-YuanGroup/Open-Sora-Plan,
  docs/Data.md.
- DMLab and Minecraft: arXiv:2210.02396 and wilson1yan/teco at 1e92c08 (README.md, teco/data.py, scripts/download). The
  sizes of train and test are not stated there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file to download."""

    url: str
    checksum: str | None
    """Algorithm and hexadecimal digest, such as "sha256:5c0d..."; None if none is published."""
    num_bytes: int | None = None
    is_list: bool = False
    """Whether it holds lists of clips instead of clips. Lists are downloaded also for clips given by --source."""

    @property
    def file_name(self) -> str:
        """Last part of the URL."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about a published dataset."""

    name: str
    """Name on the command line."""
    title: str
    page: str
    """URL of its description."""
    licence: str
    """Licence stated on the page; not legal advice."""
    get: str
    """What to download, and from where."""
    source: str
    """What --source may be."""
    remotes: tuple[Remote, ...] = ()
    """Files that --download fetches."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Published numbers of "clips", "classes", and the clips of each split (by its name)."""

    @property
    def module(self) -> str:
        """Name of the module with its `prepare`."""
        return f"arvid.data.prepare.{self.name.replace('-', '_')}"


UCF101 = Facts(
    name="ucf101",
    title="UCF-101: actions, 320x240, 25 or 29.97 fps",
    page="https://www.crcv.ucf.edu/data/UCF101.php",
    licence="none stated: clips from YouTube, for research",
    get=(
        "https://www.crcv.ucf.edu/data/UCF101/UCF101.rar (6.9 GB; unpack it by `unrar x`) and "
        "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip. --download fetches a zip "
        "file of the same clips, with a published checksum."
    ),
    source="the folder UCF-101, a folder of all clips, or an archive of either",
    remotes=(
        Remote(
            url="https://storage.googleapis.com/thumos14_files/UCF101_videos.zip",
            checksum="sha256:dabf56f573cd19c79e096563529fec8126a2a34e18e10c72eb621dd687532b0d",
            num_bytes=6_960_400_115,
        ),
        Remote(
            url="https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip",
            checksum="sha256:5c0d1a53b8ed364a2ac830a73f405e51bece7d98ce1254fd19ed4a36b224bd27",
            num_bytes=113_943,
            is_list=True,
        ),
    ),
    counts={
        "clips": 13_320,
        "classes": 101,
        "train01": 9_537,
        "test01": 3_783,
        "train02": 9_586,
        "test02": 3_734,
        "train03": 9_624,
        "test03": 3_696,
    },
)

_K600 = "https://s3.amazonaws.com/kinetics/600"

KINETICS600 = Facts(
    name="kinetics600",
    title="Kinetics-600: actions, 10 seconds each, of many sizes and rates",
    page="https://github.com/cvdfoundation/kinetics-dataset",
    licence="annotations CC BY 4.0; clips from YouTube, whose uploaders hold the rights",
    get=(
        f"the archives named in {_K600}/train/k600_train_path.txt (likewise val, test): 779 GB, which --download does "
        "not fetch. 427,549 training, 29,793 validation and 72,924 test clips are hosted; the lists name more. "
        "--download fetches the lists."
    ),
    source="a folder of clips named <id>_<start>_<end>.mp4 or <id>.mp4, at any depth; or a folder of the archives",
    remotes=tuple(
        Remote(url=f"{_K600}/annotations/{split}.csv", checksum=None, is_list=True)
        for split in ("train", "val", "test")
    ),
    counts={"classes": 600},
)

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"

MOVING_MNIST = Facts(
    name="moving-mnist",
    title="Moving MNIST: two digits that bounce, 64x64, 20 frames, rendered from MNIST",
    page="https://www.cs.toronto.edu/~nitish/unsupervised_video/",
    licence="MNIST CC BY-SA 3.0",
    get=f"the four files of MNIST from {_MNIST}/, and the published test sequences mnist_test_seq.npy from the page",
    source=(
        "a folder with MNIST's four idx files (plain or .gz, at any depth, as in torchvision's root) or mnist.npz, and "
        "mnist_test_seq.npy for the published test sequences"
    ),
    remotes=(
        *(
            Remote(url=f"{_MNIST}/{name}-ubyte.gz", checksum=f"md5:{md5}")
            for name, md5 in (
                ("train-images-idx3", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
                ("train-labels-idx1", "d53e105ee54ea40749a09fcbcd1e9432"),
                ("t10k-images-idx3", "9fb629c4189551a2d022fa330f9573f3"),
                ("t10k-labels-idx1", "ec29112dd5afa0611ce80d1b7f02629c"),
            )
        ),
        Remote(
            url="http://www.cs.toronto.edu/~nitish/unsupervised_video/mnist_test_seq.npy",
            checksum="sha256:c2a3e8d3939c001ab77bf543f130157424efa486bb4d0974d2cebb773b13f8b3",
            num_bytes=819_200_096,
        ),
    ),
)

BAIR = Facts(
    name="bair",
    title="BAIR robot pushing: a robot arm, 64x64, 30 frames",
    page="https://sites.google.com/view/sna-visual-mpc/",
    licence="none stated",
    get="http://rail.eecs.berkeley.edu/datasets/bair_robot_pushing_dataset_v0.tar (32 GB)",
    source=(
        "the .tar, which is read without unpacking; a folder with train/*.tfrecords and test/*.tfrecords; or one with "
        "folders of frames below train and test"
    ),
    remotes=(
        Remote(
            url="http://rail.eecs.berkeley.edu/datasets/bair_robot_pushing_dataset_v0.tar",
            checksum="sha256:c6f8d164ab2be07174ef597e3e070d7466f3142caddc467b6af119b9458cd9cd",
            num_bytes=32_274_964_480,
        ),
    ),
    counts={"train": 43_264, "test": 256},
)

SKY = Facts(
    name="sky",
    title="Sky time-lapse: clouds, 640x360, folders of frames",
    page="https://github.com/weixiong-ur/mdgan",
    licence="none stated: clips from YouTube, for research",
    get=(
        "https://drive.google.com/open?id=1xWLiU-MBGN7MrsFHQm4_yXmfHBsMbJQo, by hand or with gdown: --download "
        "does not read Google Drive"
    ),
    source="a folder or archive with folders of frames below sky_train and sky_test",
    counts={"train": 2_392, "test": 225},
)

DMLAB = Facts(
    name="dmlab",
    title="DMLab of TECO: walks through mazes, 64x64, 300 frames, an action at each",
    page="https://github.com/wilson1yan/teco",
    licence="none stated",
    get=(
        "the Internet Archive's items dmlab_dataset_aa, _ab and _ac (54 GB), by scripts/download/dmlab.sh of "
        "wilson1yan/teco"
    ),
    source="a folder with train/*/*.npz and test/*/*.npz, each with the arrays video and actions",
    counts={"clips": 40_000},
)

MINECRAFT = Facts(
    name="minecraft",
    title="Minecraft of TECO: walks through marshes, 128x128, 300 frames, an action at each",
    page="https://github.com/wilson1yan/teco",
    licence="none stated",
    get=(
        "the Internet Archive's items minecraft_marsh_dataset_aa to _ak (210 GB), by scripts/download/minecraft.sh of "
        "wilson1yan/teco"
    ),
    source="a folder with train/*/*.mp4 and test/*/*.mp4, each with an .npz of the array actions beside it",
    counts={"clips": 200_000},
)

FOLDER = Facts(
    name="folder",
    title="any folder of videos, with one folder per class or none",
    page="",
    licence="yours",
    get="nothing: these are your own videos",
    source="ROOT/<Class>/<video>, or ROOT/<video>; or an archive of such a folder",
)

DATASETS = (UCF101, KINETICS600, MOVING_MNIST, BAIR, SKY, DMLAB, MINECRAFT, FOLDER)
"""All datasets, in the order of the command's help."""
