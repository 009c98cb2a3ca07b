"""The script of a scene, which needs torch and safetensors alone."""
