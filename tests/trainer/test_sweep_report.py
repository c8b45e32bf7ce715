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
    tried = ((3.0, "COMPLETE"), (1.0, "COMPLETE"), (0.5, "PRUNED"))
    for n, (value, state) in enumerate(tried):
        found.add_trial(
            optuna.create_trial(
                state=optuna.trial.TrialState[state],
                value=value if state == "COMPLETE" else None,
                params={"toy.norm": "[bold]x" if value == 1 else "<b>"},
                distributions={"toy.norm": choices},
                intermediate_values={5: value},
                user_attrs={"experiment": f"runs/trial-{n:03}"},
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


def test_tensorboard_shows_the_trials(study, tmp_path, monkeypatch):
    """As TensorBoard itself reads them."""
    from tensorboard.backend.event_processing import plugin_event_multiplexer
    from tensorboard.plugins.hparams import plugin_data_pb2

    monkeypatch.chdir(tmp_path)
    for n in range(3):
        (tmp_path / f"runs/trial-{n:03}").mkdir(parents=True)
    spec = study.user_attrs["spec"]
    for _ in range(2):  # a second call replaces the first one's files
        sweep_report.write_hparams(study, "runs", toy.config, spec)
    assert len(list(tmp_path.rglob("*tfevents.hparams"))) == 1 + 3
    runs = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory("runs").Reload()

    def content(run, tag):
        metadata = runs.SummaryMetadata(run, tag)
        return plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)

    experiment = content(".", "_hparams_/experiment").experiment
    assert [info.name for info in experiment.hparam_infos] == ["toy.norm"]
    choices = experiment.hparam_infos[0].domain_discrete.values
    assert {value.string_value for value in choices} == {"[bold]x", "<b>"}
    name = experiment.metric_infos[0].name  # of the run in which the trainer writes the figure
    assert (name.group, name.tag) == ("summaries/vld", "error")
    started = content("trial-001", "_hparams_/session_start_info").session_start_info
    assert started.hparams["toy.norm"].string_value == "[bold]x"
    ended = content("trial-002", "_hparams_/session_end_info").session_end_info
    assert ended.status == 0  # pruned: neither success nor failure
