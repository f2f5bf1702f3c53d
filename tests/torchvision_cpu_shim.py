"""Let the CUDA-linked torchvision wheel import beside a CPU-only torch.

torchvision/_meta_registrations.py registers fakes for two C++ ops (nms, qnms)
even when its C++ library could not be loaded; declare their schemas first.
"""

import sys


class _Finder:
    _lib = None

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(cls)
            try:
                import torch

                if torch.version.cuda is None:
                    lib = torch.library.Library("torchvision", "DEF")
                    s = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                    lib.define("nms" + s)
                    lib.define("qnms" + s)
                    cls._lib = lib
            except ImportError:
                pass
        return None


sys.meta_path.insert(0, _Finder)
