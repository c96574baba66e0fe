import argparse

from net.model import train

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=1)
train(parser.parse_args().epochs)
