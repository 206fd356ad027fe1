# packaging/run copies this project and says where quic_dist is.
defmodule MixUser.MixProject do
  use Mix.Project

  def project do
    [
      app: :mix_user,
      version: "1.0.0",
      deps: [{:quic_dist, path: System.fetch_env!("QUIC_DIST_PATH")}]
    ]
  end

  def application, do: []
end
