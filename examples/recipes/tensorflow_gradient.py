"""Write a loss in TensorFlow: ten lines, eager; in tf.function wrap the call in tf.py_function."""

import tensorflow as tf

import fastemd

chain = fastemd.Chain(5)


@tf.custom_gradient
def emd(p, q):
    value, grad = fastemd.emd_value_and_grad(p, q, chain, 2)

    def backward(upstream):
        to_p = upstream[..., None] * grad
        return to_p, -to_p

    return tf.convert_to_tensor(value), backward


logits = tf.Variable(tf.zeros((2, 5)))
target = tf.one_hot([0, 3], 5)
for _ in range(200):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(emd(tf.nn.softmax(logits), target))
    logits.assign_sub(tape.gradient(loss, logits))
classes = tf.argmax(logits, -1).numpy().tolist()
print(f"loss {loss.numpy():.4f}, classes {classes}")
assert classes == [0, 3]
