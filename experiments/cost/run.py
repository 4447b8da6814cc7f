"""What encoder, decoder and heads of a Whisper cost.

Values: conf/cost.yaml
"""

import hydra
from omegaconf import DictConfig

from whispertag.runs import entry


@hydra.main(version_base="1.3", config_path="../../conf", config_name="cost")
def main(config: DictConfig) -> None:
    with entry.study(config) as (folder, values):
        from whispertag.studies import cost

        cost.run(folder, **values)


if __name__ == "__main__":
    main()
