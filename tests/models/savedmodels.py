"""Small SavedModels, as others would hand them over, for tests."""

import tensorflow as tf

from trainer import layers

v1 = tf.compat.v1


class Reusable(tf.Module):
    """A TF2 network with batch statistics; its `__call__` takes [0, 1] and has a training mode."""

    def __init__(self):
        super().__init__()
        kernel = tf.random.stateless_normal([3, 3, 3, 8], (1, 2))
        self.kernel = tf.Variable(kernel, name="conv/kernel")
        self.gamma = tf.Variable(tf.ones([8]), name="norm/gamma")
        self.mean = tf.Variable(tf.zeros([8]), trainable=False, name="norm/moving_mean")

    @tf.function
    def __call__(self, images, training=False):
        x = tf.nn.conv2d(images, self.kernel, 2, "SAME")
        mean = self.mean.read_value()
        if training:
            mean = tf.reduce_mean(x, [0, 1, 2])
            self.mean.assign(0.9 * self.mean + 0.1 * mean)
        return tf.reduce_mean(tf.nn.relu((x - mean) * self.gamma), [1, 2])


def write_tf2(folder):
    model = Reusable()
    images = tf.TensorSpec([None, None, None, 3], tf.float32)
    for training in (False, True):
        model.__call__.get_concrete_function(images, training=training)
    tf.saved_model.save(model, folder)


def write_tf2_signature(folder, size=(8, 8), dtype=tf.uint8, channels=3, output="embeddings"):
    """Served only: it cannot be called, and takes pictures of one size."""
    model = tf.Module()
    model.scale = tf.Variable(2.0, name="scale")

    @tf.function(input_signature=[tf.TensorSpec([None, *size, channels], dtype, "image")])
    def serve(image):
        # A map of features, [B, H, W, C].
        return {output: tf.cast(image, tf.float32) * model.scale, "other": tf.constant(0)}

    tf.saved_model.save(model, folder, {"serving_default": serve})


def write_tf1(folder):
    """As TensorFlow Hub had them: one graph to serve, and one, tagged train, to train."""
    builder = v1.saved_model.Builder(folder)
    for train in (False, True):
        with tf.Graph().as_default(), v1.Session() as session:
            v1.set_random_seed(1)
            images = v1.placeholder(tf.float32, [None, None, None, 3], "images")
            x = layers.conv2d(images, 8, 3, "conv", strides=2, use_bias=False)
            x = tf.reduce_mean(tf.nn.relu(layers.batch_norm(x, train, "norm")), [1, 2])
            signature = v1.saved_model.predict_signature_def({"images": images}, {"default": x})
            session.run(v1.global_variables_initializer())
            if train:
                builder.add_meta_graph(["train"], {"default": signature})
            else:
                builder.add_meta_graph_and_variables(session, [], {"default": signature})
    builder.save()
