"""One package of the field in its own interpreter: PYTHON peer_worker.py NAME. Imports nothing of this project.

Speaks as benchmarks/engines/worker.py: {"do": "time", "jpegs": [..], "seconds": ..} -> {"ms": [..]}, from the bytes of
a JPEG of one face crop to the package's probabilities. What cannot be opened says why: most packages fetch their
weights when they are first used.
"""

import json
import os
import resource
import sys
import time


def fer():
    """The package `fer`: its Keras network on a face box that is given, without its face detector."""
    import cv2
    import numpy as np
    from fer.fer import FER

    detector = FER(mtcnn=False)

    def call(data):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        height, width = image.shape[:2]
        (found,) = detector.detect_emotions(image, face_rectangles=[(0, 0, width, height)])
        return found["emotions"]

    return call


def emotiefflib():
    """EmotiEffLib's ONNX Runtime network that its README shows first."""
    import cv2
    import numpy as np
    from emotiefflib.facial_analysis import EmotiEffLibRecognizer

    recogniser = EmotiEffLibRecognizer(engine="onnx", model_name="enet_b0_8_best_vgaf", device="cpu")

    def call(data):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return recogniser.predict_emotions(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), logits=True)

    return call


def hsemotion_onnx():
    """hsemotion-onnx, EmotiEffLib's predecessor."""
    import cv2
    import numpy as np
    from hsemotion_onnx.facial_emotions import HSEmotionRecognizer

    recogniser = HSEmotionRecognizer(model_name="enet_b0_8_best_vgaf")

    def call(data):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return recogniser.predict_emotions(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), logits=True)

    return call


def deepface():
    """DeepFace's emotion network on a crop."""
    import cv2
    import numpy as np
    from deepface import DeepFace

    def call(data):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return DeepFace.analyze(image, actions=["emotion"], detector_backend="skip", silent=True)

    return call


PACKAGES = {"fer": fer, "emotiefflib": emotiefflib, "hsemotion_onnx": hsemotion_onnx, "deepface": deepface}


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        start = time.perf_counter()
        call = PACKAGES[sys.argv[1]]()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        say({"open_s": time.perf_counter() - start, "rss_mib": memory})
    except BaseException as error:
        lines = str(error).strip().splitlines()
        say({"error": f"{type(error).__name__}: {lines[-1] if lines else ''}"})
        return
    for line in sys.stdin:
        command = json.loads(line)
        try:
            files = []
            for path in command["jpegs"]:
                with open(path, "rb") as file:
                    files.append(file.read())
            call(files[0])
            taken, begin = [], time.perf_counter()
            while len(taken) < 3 or time.perf_counter() - begin < command["seconds"]:
                start = time.perf_counter()
                call(files[len(taken) % len(files)])
                taken.append((time.perf_counter() - start) * 1e3)
            say({"ms": taken})
        except BaseException as error:
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
