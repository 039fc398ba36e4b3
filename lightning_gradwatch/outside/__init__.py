"""The same instruments without a Trainer: for plain loops, Fabric, and other packages' loops."""
