defmodule MixUser do
  @moduledoc "What two nodes of a Mix project that depends on quic_dist do."

  @doc "Connects to a peer, works with it and stops it."
  def check(peer) do
    :pong = ping(peer, 100)
    3_000_000 = :erpc.call(peer, :erlang, :byte_size, [:rand.bytes(3_000_000)])
    %{connections: [%{node: ^peer, verified: :cookie}]} = :quic_dist.info()
    :ok = :erpc.call(peer, :init, :stop, [])
    IO.puts("connected to #{peer} over QUIC")
  end

  defp ping(peer, tries) do
    case :net_adm.ping(peer) do
      :pang when tries > 0 ->
        Process.sleep(100)
        ping(peer, tries - 1)

      answer ->
        answer
    end
  end
end
