from minigenie.console import training, working
from minigenie.train import Progress


def step(fraction, perplexity, stage="lam"):
    return Progress(stage, int(fraction * 100), fraction, 1.0, {"loss": 0.1, "perplexity": perplexity})


def test_a_collapse_of_the_actions_is_said_once_and_loudly(capsys):
    with training() as watcher:
        for fraction in (0.7, 0.8, 0.9):
            watcher.progress(step(fraction, 1.1))
    errors = capsys.readouterr().err
    assert errors.count("WARNING: the latent actions have collapsed (step 70, perplexity 1.10)") == 1
    assert "--set lam.quantizer.warmup" in errors


def test_healthy_actions_and_the_continuous_start_are_no_collapse(capsys):
    with training() as watcher:
        watcher.progress(step(0.3, 1.0))
        watcher.progress(step(0.9, 7.5))
        watcher.progress(step(0.9, 1.0, stage="tokenizer"))
    assert "WARNING" not in capsys.readouterr().err


def test_progress_ends_with_a_line_where_there_is_no_terminal(capsys):
    with working("collect", "frames") as progress:
        progress(50, 100)
        progress(100, 100)
    assert "collect: 100%  100/100 frames" in capsys.readouterr().err


def test_actions_that_say_nothing_are_said_and_old_values_are_not_held_against_them(capsys):
    with training() as watcher:
        watcher.progress(Progress("lam", 50, 0.5, 1.0, {"control": 0.0}))  # still continuous
        watcher.progress(step(0.7, 6.0))
        assert "WARNING" not in capsys.readouterr().err
        for _ in range(2):
            watcher.progress(Progress("dynamics", 80, 0.8, 1.0, {"control": 0.0, "lam_control": 0.01}))
    errors = capsys.readouterr().err
    assert errors.count("WARNING: the latent actions say nothing (step 80, worth 0.010") == 1
