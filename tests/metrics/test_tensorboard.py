"""TensorBoard: the points of a run and of a resume, and errors that never end a run."""

import math
import threading

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.api_pb2 import ColParams, ListSessionGroupsRequest, MetricName, Status
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler
from torch.utils.tensorboard import SummaryWriter

from seresnext.metrics.sink import RunStart
from seresnext.metrics.tensorboard import TensorBoard
from seresnext.recipe.load import load_recipe, to_values


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def open_board(tmp_path, warnings):
    """`open_board(step)`: open a new file of a run that starts after this step."""
    return lambda step=0: TensorBoard(RunStart(tmp_path, step, 0, 0, warnings.append))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "tensorboard"


def train(step, **fields):
    return {"event": "train", "step": step, "epoch": step / 10, **fields}


def scalars(folder):
    events = EventAccumulator(str(folder), purge_orphaned_data=True)
    events.Reload()
    return {tag: [(item.step, item.value) for item in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_points_are_the_numbers_of_the_events(open_board, folder, warnings):
    board = open_board()
    board.write(train(10, loss=2.5, lr=0.5, images_per_second=64, data_wait=0.25, grad_norm=1.0))
    for weights, top1 in (("model", 50.0), ("ema", 60.0)):
        board.write({"event": "validate", "step": 10, "epoch": 1.0, "top1": top1, "top5": 75.0, "weights": weights})
    assert scalars(folder) == {  # Each event is written at once, before the close.
        "train/loss": [(10, 2.5)],
        "train/lr": [(10, 0.5)],
        "speed/images_per_second": [(10, 64.0)],
        "speed/data_wait": [(10, 0.25)],
        "train/grad_norm": [(10, 1.0)],
        "validate/top1": [(10, 50.0)],
        "validate/top5": [(10, 75.0)],
        "validate_ema/top1": [(10, 60.0)],
        "validate_ema/top5": [(10, 75.0)],
    }
    board.close()
    assert warnings == []


def board_of_a_killed_run(open_board, folder):
    """Write steps 1 to 3 to a file with an early name, and return the file."""
    first = open_board()
    for step in (1, 2, 3):
        first.write(train(step, loss=1.0))
    first.close()
    (file,) = folder.iterdir()
    return file.rename(folder / "events.out.tfevents.0000000001.earlier")


def test_a_resume_hides_the_points_of_repeated_steps(open_board, folder):
    board_of_a_killed_run(open_board, folder)
    second = open_board(2)
    second.write(train(3, loss=2.0))
    second.close()
    assert scalars(folder) == {"train/loss": [(1, 1.0), (2, 1.0), (3, 2.0)]}


def test_a_resume_leaves_a_truncated_file_unchanged(open_board, folder, warnings):
    """A kill leaves a file that ends inside a record. A resume writes a new file and changes no other file."""
    broken = board_of_a_killed_run(open_board, folder)
    cut = broken.read_bytes()[:-5]
    broken.write_bytes(cut)
    second = open_board(2)
    second.write(train(3, loss=2.0))
    second.close()
    assert broken.read_bytes() == cut
    assert scalars(folder) == {"train/loss": [(1, 1.0), (2, 1.0), (3, 2.0)]}
    assert warnings == []


def test_a_folder_that_cannot_be_made_is_one_warning(open_board, folder, warnings):
    folder.write_text("a file is in the way")
    board = open_board()
    board.write(train(1, loss=1.0))
    board.close()
    assert len(warnings) == 1
    assert str(folder) in warnings[0]


def test_a_full_disk_is_one_warning(open_board, folder, warnings):
    """Linux's /dev/full acts as a full disk."""
    board = open_board()
    board.write(train(1, loss=1.0))
    board.close()
    board._file = open("/dev/full", "wb", buffering=0)  # noqa: PTH123, SIM115
    for step in range(2, 50):
        board.write(train(step, loss=1.0))
    board.close()
    assert len(warnings) == 1
    assert "No space left on device" in warnings[0]
    assert scalars(folder) == {"train/loss": [(1, 1.0)]}


def test_scalars_equal_those_of_summary_writer_without_its_thread(open_board, folder, tmp_path):
    """Loader workers are forked from this process."""
    event = train(7, loss=0.1, lr=math.nan, images_per_second=1e30)
    threads = threading.active_count()
    ours = open_board(2)
    ours.write(event)
    assert threading.active_count() == threads
    ours.close()
    with SummaryWriter(str(tmp_path / "torch"), purge_step=3) as torchs:
        assert threading.active_count() > threads
        for name in ("train/loss", "train/lr", "speed/images_per_second"):
            torchs.add_scalar(name, event[name.partition("/")[2]], 7)
    assert repr(scalars(folder)) == repr(scalars(tmp_path / "torch"))


def test_hparams_compares_runs_by_their_recipes(tmp_path):
    """TensorBoard's own plugin pairs the keys that differ with the last points of the charts."""
    for name, rate in (("slow", 0.25), ("fast", 0.5)):
        (tmp_path / name).mkdir()
        recipe = to_values(load_recipe("digits", [f"optimizer.lr={rate}"]).recipe)
        board = TensorBoard(RunStart(tmp_path / name, 0, 0, 0, print, recipe))
        for step in (1, 2):
            board.write({"event": "validate", "step": step, "epoch": step, "top1": rate * step})
        board.close()
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(tmp_path))
    board = Context(TBContext(logdir=str(tmp_path), data_provider=provider, multiplexer=multiplexer))
    context, metric = RequestContext(), MetricName(tag="validate/top1")
    experiment = board.experiment_from_metadata(context, "", True, board.hparams_metadata(context, ""), [])
    assert [info.name for info in experiment.hparam_infos if info.differs] == ["optimizer.lr"]
    assert len(experiment.hparam_infos) > 40
    assert [info.name.tag for info in experiment.metric_infos] == ["validate/top1"]
    request = ListSessionGroupsRequest(
        allowed_statuses=[Status.Value("STATUS_RUNNING"), Status.Value("STATUS_UNKNOWN")],
        slice_size=9,
        col_params=[ColParams(metric=metric)],
        include_metrics=True,
    )
    groups = Handler(context, board, "", request).run().session_groups
    found = {group.name: (group.hparams["optimizer.lr"].number_value, group.metric_values[0].value) for group in groups}
    assert found == {"slow": (0.25, 0.5), "fast": (0.5, 1.0)}
