"""The ways to run a folded TKFNet. `registry` names them; each other file is one of them."""
