"""`python -m trainer`: the training. What is done with its network: trainer.evaluate,
trainer.predict, trainer.export."""

from trainer.train import command

if __name__ == "__main__":
    command()
