"""Text from frozen public language models: what large text-to-video backbones were trained on."""
