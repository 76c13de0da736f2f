"""The modes of the command line: calls the library, turns user errors into a line and a code."""

import contextlib
import os
import signal
import sys
from pathlib import Path

from deeplab_jax import huge_pages

if __name__ == "__main__":  # before what takes seconds to load
    huge_pages.restart_with_them()

from deeplab_jax import archive, classes, classify, command_line, modes, processes, runtime
from deeplab_jax import check_data as checking
from deeplab_jax import config as configuration
from deeplab_jax import score as scores
from deeplab_jax.data import download, image_files
from deeplab_jax.errors import ConfigError, Preempted, ResourceError, UserError, did_you_mean
from deeplab_jax.output import complain

# Modes that a classifier has no use for.
LABEL_MAPS = ("predict", "check_data", "tune_crf", "export", "score", "archive")


def run(
    config,
    mode: str,
    workdir: Path,
    input: str | None = None,
    output: Path | None = None,
    profile: bool = False,
    spec: str | None = None,
    truth: str | None = None,
):
    """Does one mode; what the command line and the tests call.

    Args:
      config: see configs/common.py; None only to import, the file then says what it is, and to
        score. A number of classes that is None becomes that of the user's own data.
      mode: one of `command_line.MODES`.
      workdir: for everything that is written.
      input: predict: file, folder or glob, export: likewise, to check it with; import: weight
        file; score, archive: folder of label images; download: an archive to unpack.
      output: predict, export, score, archive, import, download: where to, if not
        workdir/predictions, workdir/export, workdir/score, workdir/archive, workdir, data.root.
      profile: write a trace of the work to workdir/profile; of training a few steps.
      spec: "FILE.py:preset" of `config`; check_data bases the configuration it writes on it.
      truth: score: folder of masks.

    Returns:
      The figures of the evaluation (train, eval), or None.

    Raises:
      UserError: with the sentence for the user and the exit code.
    """
    known = command_line.MODES
    if mode not in known:
        raise ConfigError(
            f"--mode={mode} is not one of {', '.join(known)}" + did_you_mean(mode, known)
        )
    if mode == "download":
        return download.download_or_unpack(config, input, output)
    image_files.limit_pixels(image_files.MAX_PIXELS if config is None else config.data.max_pixels)
    if config is not None:
        classes.fill_in(config, mode, workdir)
        configuration.check(config)
        if config.deterministic:
            runtime.make_deterministic()
    for folder in (workdir, output):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise ResourceError(f"{folder} is a file; --workdir and --output name folders")
    if config is not None and modes.scoring_of(config) is classify and mode in LABEL_MAPS:
        raise ConfigError(f"--mode={mode} is about label maps, and model.name=classifier has none")
    traces = workdir / "profile" if profile and runtime.leads() else None
    if mode == "train":
        return modes.train_and_evaluate(config, workdir, traces)
    if mode == "import":
        return modes.import_weights(config, input, output or workdir)
    if mode == "score":
        return scores.score_files(config, input, truth, output or (workdir and workdir / "score"))
    if mode == "archive":
        return archive.pack_folder(config, input, output or workdir / "archive")
    with runtime.profile(traces):
        if mode == "export":
            return modes.export_network(config, workdir, input, output or workdir / "export")
        if mode == "predict":
            return modes.predict(config, workdir, input, output)
        if mode == "check_data":
            return checking.check_data(config, workdir, spec)
        others = {"eval": modes.evaluate_weights, "count": modes.count, "tune_crf": modes.tune}
        return others[mode](config, workdir)


def cli() -> int:
    """Entry point of the `deeplab` script."""
    huge_pages.restart_with_them()
    return _ended(main())


def _ended(code: int) -> int:
    """The exit code; after a signal everything is saved and said, and threads that still read
    images ahead are not to be waited for, nor to meet an interpreter that ends: a process that is
    alone does so here. Several still have to take leave of each other."""
    if code == Preempted.exit_code and processes.place()[1] == 1:
        with contextlib.suppress(OSError):  # the reader of the output may be gone
            sys.stdout.flush()
        os._exit(code)
    return code


def main() -> int:
    """The program of `sys.argv`; returns the exit code."""
    argv, together = sys.argv, False
    if "--debug" not in argv:
        command_line.quieten_libraries()
    try:
        flags = command_line.parse(argv)
        if flags.help:
            print(command_line.help_text())
            return 0
        together = command_line.join(flags)
        run(
            flags.config,
            flags.mode,
            Path(flags.workdir).expanduser() if flags.workdir else None,
            flags.input,
            Path(flags.output).expanduser() if flags.output else None,
            flags.profile,
            command_line.config_spec(argv),
            flags.truth,
        )
    except (Exception, KeyboardInterrupt) as error:
        told, debug = command_line.in_words(error), "--debug" in argv
        if together and not isinstance(told, processes.OF_ALL):
            processes.end_with(told, debug)
        if isinstance(error, KeyboardInterrupt) and not debug:
            print("interrupted", file=sys.stderr)
            return 128 + signal.SIGINT
        if debug or not isinstance(told, UserError):
            raise
        if not together or runtime.leads():
            prefix = "" if isinstance(told, Preempted) else "error: "
            complain(f"{prefix}{told}")
        return told.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_ended(main()))
