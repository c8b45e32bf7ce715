"""TensorBoard's files: an extra that never stops a run."""

import glob

import tensorflow as tf

from trainer import summaries

v1 = tf.compat.v1


def values(folder, split):
    (path,) = glob.glob(f"{folder}/summaries/{split}/*")
    events = v1.train.summary_iterator(path)
    return [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]


def test_figures_are_written_by_split(tmp_path):
    with tf.Graph().as_default():
        events = summaries.Events(str(tmp_path), 0)
    events.write("vld", 3, {"loss": 0.5})
    events.write("trn", 4, v1.Summary(value=[v1.Summary.Value(tag="lr", simple_value=2.0)]))
    events.close()
    assert values(tmp_path, "vld") == [(3, "loss", 0.5)]
    assert values(tmp_path, "trn") == [(4, "lr", 2)]


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path, capsys):
    (tmp_path / "summaries").write_text("a file")
    events = summaries.Events(str(tmp_path), 0)
    for step in range(3):
        events.write("vld", step, {"loss": 0.5})
    events.close()
    assert capsys.readouterr().err.count("warning: without TensorBoard's summaries") == 1


def test_images_and_triplets_are_shown(config):
    with tf.Graph().as_default() as graph:
        image = tf.zeros([4, 6, 6, 3], tf.uint8)
        outputs = {"hardest_triplet": tf.constant([0, 1, 2])}
        summaries.merged({}, {"image": image}, outputs, [], config)
        shown = [op.inputs[1] for op in graph.get_operations() if op.type == "ImageSummary"]
        assert [t.shape.as_list() for t in shown] == [[4, 6, 6, 3], [1, 6, 18, 3]]
