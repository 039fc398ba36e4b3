"""The gradient between the backward pass and the step: at either end, and whose code clips it."""
