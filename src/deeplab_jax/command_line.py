"""The command line's flags, and errors in our words."""

import logging
import re
import signal
import sys

import jax
from absl import flags
from ml_collections import config_flags

from deeplab_jax import config as configuration
from deeplab_jax import processes, runtime
from deeplab_jax.errors import ConfigError, ResourceError

MODES = (
    *("train", "eval", "predict", "check_data", "import", "count", "tune_crf", "export", "score"),
    *("archive", "download"),
)
# Modes that several processes share the work of.
TOGETHER = ("train", "eval")

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config", None, "FILE.py or FILE.py:preset; --config.a.b=value overrides. The file is executed."
)
flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and pictures.")
flags.DEFINE_string("mode", "train", f"One of {', '.join(MODES)}.")
flags.DEFINE_string(
    "input",
    None,
    "predict: an image, a folder with its sub-folders, or a quoted glob; export: likewise, to "
    "check it with. import: a weight file. score, archive: a folder of label images. download: an "
    "archive to unpack, in place of a dataset's own.",
)
flags.DEFINE_string("truth", None, "score: a folder of masks with the same names.")
flags.DEFINE_string(
    "output",
    None,
    "Folder for the results; default WORKDIR/predictions (predict), WORKDIR/export, WORKDIR/score, "
    "WORKDIR/archive, WORKDIR (import), data.root (download).",
)
flags.DEFINE_bool("profile", False, "Write a trace to WORKDIR/profile: a few steps when training.")
flags.DEFINE_bool(
    "distributed",
    False,
    "train, eval: this is one of several processes, which SLURM, Open MPI or a TPU pod tells of.",
)
flags.DEFINE_string("coordinator", None, "Elsewhere: HOST:PORT of the first process,")
flags.DEFINE_integer("processes", None, "how many there are,", lower_bound=1)
flags.DEFINE_integer("process", None, "and which this one is, from 0.", lower_bound=0)
flags.DEFINE_bool("help", False, "Show this.", short_name="h")
flags.DEFINE_bool("debug", False, "Show the stack trace of a user error.")


def parse(argv: list[str]) -> flags.FlagValues:
    """absl's parsing, with its errors in our words."""
    try:
        argv = [argv[0], *FLAGS.read_flags_from_files(argv[1:])]  # --flagfile=FILE
        spec = config_spec(argv)
        if spec is not None:
            path = spec.split(":")[0]
            configuration.check_file(path)
            configuration.allow_siblings(path)
        rest = FLAGS(argv)
    except flags.Error as error:
        if "Traceback" in str(error):  # of get_config, quoted; run it again for its own error
            configuration.load(spec)
        raise ConfigError(_flag_error(str(error))) from error
    except (AttributeError, KeyError) as error:
        raise ConfigError(_override_error(argv, error)) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if FLAGS.help:
        return FLAGS
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]!r} is no flag; flags begin with --")
    for key in _overrides(argv) if FLAGS.config else ():
        configuration.check_no_section(FLAGS.config, key)
    if FLAGS.config is None and FLAGS.mode not in ("import", "score", "download"):
        raise ConfigError("--config=FILE.py is missing, for instance --config=configs/v3plus.py")
    elsewhere = not FLAGS.output
    never = dict.fromkeys(("count", "score", "download"), False)
    needs_workdir = (never | dict.fromkeys(("import", "archive"), elsewhere)).get(FLAGS.mode, True)
    if (needs_workdir or FLAGS.profile) and not FLAGS.workdir:
        raise ConfigError("--workdir=DIR is missing: where checkpoints and pictures go")
    return FLAGS


def join(flags: flags.FlagValues) -> bool:
    """Joins the run of several processes that the flags speak of; False if of none."""
    given = flags.coordinator, flags.processes, flags.process
    if not flags.distributed and given == (None, None, None):
        return False
    if flags.mode not in TOGETHER:
        raise ConfigError(
            f"--mode={flags.mode} is done by one process; several share {', '.join(TOGETHER)}"
        )
    if flags.config.deterministic:
        runtime.make_deterministic()  # JAX's backends start with the next line
    processes.start(*given)
    if flags.mode == "eval":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing to save
    return True


def quieten_libraries() -> None:
    """Lets what goes wrong be said once, by us: for a full disk Orbax, asyncio and TensorStore,
    each in its own way, write pages of stack traces first."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    former = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            former(unraisable)

    sys.unraisablehook = hook


def in_words(error: BaseException) -> BaseException:
    """`error`; of disk, memory or permissions the `ResourceError` that says what to do."""
    exhausted = isinstance(error, (OSError, MemoryError)) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )
    if not exhausted:
        return error
    advice = "free disk or memory, check permissions, or lower train.batch_size"
    return ResourceError(f"{type(error).__name__}: {error}; {advice}")


def config_spec(argv) -> str | None:
    """What follows --config, in either of absl's spellings.

    Raises:
      ConfigError: if there are two.
    """
    found = []
    for argument, following in zip(argv, [*argv[1:], None]):
        if argument in ("--config", "-config"):
            found.append(following)
        elif argument.startswith(("--config=", "-config=")):
            found.append(argument.split("=", 1)[1])
    if len(found) > 1:
        raise ConfigError(f"--config is given {len(found)} times; one file makes a run")
    return found[0] if found else None


def _flag_error(text: str) -> str:
    if "Traceback" in text:  # absl quotes the whole trace of a failing get_config
        text = "--config: " + text.strip().splitlines()[-1].partition(": ")[2]
    return text.replace("flags.", "").strip()


def _override_error(argv, error) -> str:
    """Finds the override that is not in the config and names the nearest key."""
    config = configuration.load(config_spec(argv))
    known = configuration.flat(config)
    for key in _overrides(argv):
        if key not in known:
            return configuration.unknown_key(config, key)
    return str(error)


def _overrides(argv) -> list[str]:
    """The keys of --config.KEY=VALUE."""
    found = (re.match(r"--?(?:no)?config\.([^=]*)", argument) for argument in argv)
    return [match[1] for match in found if match]


def help_text() -> str:
    """The usage and every flag."""
    usage = "deeplab --config=FILE.py[:PRESET] --workdir=DIR [--mode=...]"
    return f"{usage}\n{FLAGS.module_help(sys.modules[__name__])}"
