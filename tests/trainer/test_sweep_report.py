"""The table and the page of a sweep."""

import optuna
import pytest
import toy

from trainer import sweep_report


@pytest.fixture
def study():
    found = optuna.create_study(direction="minimize")
    choices = optuna.distributions.CategoricalDistribution(["[bold]x", "<b>"])
    distribution = optuna.distributions.distribution_to_json(choices)
    spec = {"metric": "error", "model": "toy", "shared": {}, "space": {"toy.norm": distribution}}
    found.set_user_attr("spec", spec)
    for value, state in ((3.0, "COMPLETE"), (1.0, "COMPLETE"), (0.5, "PRUNED")):
        found.add_trial(
            optuna.create_trial(
                state=optuna.trial.TrialState[state],
                value=value if state == "COMPLETE" else None,
                params={"toy.norm": "[bold]x" if value == 1 else "<b>"},
                distributions={"toy.norm": choices},
                intermediate_values={5: value},
                user_attrs={"experiment": "runs/x"},
            )
        )
    return found


def test_finished_trials_come_first_best_first(study):
    assert [row["trial"] for row in sweep_report.rows(study)] == [1, 0, 2]


def test_values_are_shown_as_they_are(study, capsys, tmp_path):
    sweep_report.show(study)
    assert "[bold]x" in capsys.readouterr().out
    sweep_report.write(study, str(tmp_path), toy.config, study.user_attrs["spec"])
    page = (tmp_path / "sweep.html").read_text()
    assert "&lt;b&gt;" in page and "<b>" not in page and "data:image/png;base64," in page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sweep.html", "sweep.png"]
