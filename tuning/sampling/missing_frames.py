"""The frames of a run that were lost, written from its study before anything reads them."""

from tuning.runs import run_folder, schema
from tuning.runs.run_folder import Run
from tuning.sampling import recalled_trials, study_frames, study_storage
from tuning.sampling.known_trials import PAUSED, KnownTrials
from tuning.sampling.study_frames import StudyFrames


def write_missing(run: Run) -> None:
    """Writes those frames of a run, from its study, that are missing or have no row; the study stays as it is.

    Raises:
        UserError: The study is damaged, or it is not the one that the frame that is left was written from.
    """
    study, trials = study_storage.load(run.path), KnownTrials()
    every = study.get_trials(deepcopy=False)
    study_frames.check_belongs(run.path, every, study_frames.read(run.path)[0])
    in_frames = recalled_trials.by_trial(schema.whole_rows(run.path / "epochs.csv"))
    for trial in every:
        # The number stands for the id in the study, which no frame has.
        known = recalled_trials.recalled(trial, trial.number, in_frames.get(trial.number, {}))
        if known is not None:
            known.state = PAUSED if not known.has_ended and known.attrs.get(PAUSED) else known.state
            trials[trial.number] = known
    frames = StudyFrames(run.path, trials, run.metric)
    lack_trials, lack_epochs = (run_folder.is_missing(run.path / name) for name in schema.FRAMES)
    if lack_trials:
        frames.write_trials([trial.number for trial in study.best_trials] if len(study.directions) > 1 else None)
    if lack_epochs:
        frames.mend([])
