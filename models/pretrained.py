"""`python -m models.pretrained NAME`: published weights, made ready for TensorFlow."""

from models.backbones.pretrained import main

if __name__ == "__main__":
    main()
