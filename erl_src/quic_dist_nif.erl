%% @doc The border to the engine in Rust: one stub for each function of the
%% NIF library, and the loading of that library.
%%
%% Every handle is an opaque reference. Messages that the engine sends:
%% <ul>
%% <li>to the owner of an endpoint:
%%   `{quic_dist_incoming, Endpoint, Conn, Peer}',
%%   `{quic_dist_refused, Endpoint, Peer, Reason}',
%%   `{quic_dist_log, Level, Text}',
%%   `{quic_dist_endpoint_down, Endpoint, Text}' (its thread failed)</li>
%% <li>to the owner of a connection: `{quic_dist, Conn, connected}',
%%   `{quic_dist, Conn, {control, [binary()]}}', `{quic_dist, Conn, writable}',
%%   `{quic_dist, Conn, {closed, close_reason()}}' (once, and the last)</li>
%% <li>to the input process of a connection:
%%   `{quic_dist_packets, [binary()], Bytes}', and `closed' as above</li>
%% </ul>
-module(quic_dist_nif).

-export([load/0,
         identity_new/2,
         endpoint_open/3, endpoint_close/1, endpoint_set_identity/2,
         endpoint_info/1,
         connect/3, set_owner/2, set_input/2,
         control_send/2, data_send/2, data_send_large/2, consumed/2, tick/1,
         stats/1, info/1, close/2]).

-nifs([identity_new/2,
       endpoint_open/3, endpoint_close/1, endpoint_set_identity/2,
       endpoint_info/1,
       connect/3, set_owner/2, set_input/2,
       control_send/2, data_send/2, data_send_large/2, consumed/2, tick/1,
       stats/1, info/1, close/2]).

-define(NOT_LOADED, erlang:nif_error({not_loaded, ?MODULE})).

-export_type([identity/0, endpoint/0, connection/0, peer/0, close_reason/0]).

-type identity() :: reference().
-type endpoint() :: reference().
-type connection() :: reference().
-type peer() :: {inet:ip_address(), inet:port_number()}.
-type close_reason() ::
        {peer_closed, Code :: non_neg_integer(), Text :: binary()}
      | {local_closed, Text :: binary()}
      | idle_timeout
      | handshake_timeout
      | {tls, Text :: binary()}
      | {protocol_error, Text :: binary()}
      | {bad_packet, Text :: binary()}
      | {transport_error, Code :: non_neg_integer(), Text :: binary()}
      | owner_down
      | endpoint_closed
      | {io, inet:posix()}.

%% @doc The certificate authority that follows from the cookie, and a
%% certificate of it for this node. Takes about 0.2 s on a dirty scheduler.
-spec identity_new(Cookie :: binary(), Name :: binary()) ->
          {ok, identity()} | {error, term()}.
identity_new(_Cookie, _Name) ->
    ?NOT_LOADED.

%% @doc Opens a UDP socket and starts its event thread. The endpoint closes
%% when `Owner' dies.
-spec endpoint_open(Owner :: pid(), identity(), Opts :: map()) ->
          {ok, endpoint(), inet:port_number()}
        | {error, inet:posix() | {bad_option, atom()}}.
endpoint_open(_Owner, _Identity, _Opts) ->
    ?NOT_LOADED.

%% @doc Closes the endpoint and its connections; its thread has ended when
%% this returns.
-spec endpoint_close(endpoint()) -> ok.
endpoint_close(_Endpoint) ->
    ?NOT_LOADED.

%% @doc Sets the identity that new connections use.
-spec endpoint_set_identity(endpoint(), identity()) -> ok.
endpoint_set_identity(_Endpoint, _Identity) ->
    ?NOT_LOADED.

%% @doc What the endpoint does at the moment: address, counters.
-spec endpoint_info(endpoint()) -> map().
endpoint_info(_Endpoint) ->
    ?NOT_LOADED.

%% @doc Dials a peer. `Owner' gets `connected' or `closed'.
-spec connect(endpoint(), peer(), Owner :: pid()) ->
          {ok, connection()} | {error, term()}.
connect(_Endpoint, _Peer, _Owner) ->
    ?NOT_LOADED.

%% @doc Gives the connection a new owner. From now on its control stream is read.
-spec set_owner(connection(), pid()) -> ok | {error, closed}.
set_owner(_Conn, _Pid) ->
    ?NOT_LOADED.

%% @doc Gives the connection its input process. From now on its data streams
%% are read.
-spec set_input(connection(), pid()) -> ok | {error, closed}.
set_input(_Conn, _Pid) ->
    ?NOT_LOADED.

%% @doc Sends one handshake message on the control stream.
-spec control_send(connection(), iodata()) -> ok | {error, closed | too_long}.
control_send(_Conn, _Message) ->
    ?NOT_LOADED.

%% @doc Queues distribution packets. `busy': they are queued, but the caller
%% is to wait for `writable' before the next call.
-spec data_send(connection(), [iodata()]) -> ok | busy | {error, closed}.
data_send(_Conn, _Packets) ->
    ?NOT_LOADED.

%% @doc The same on a dirty scheduler, for packets whose copying takes long.
-spec data_send_large(connection(), [iodata()]) -> ok | busy | {error, closed}.
data_send_large(_Conn, _Packets) ->
    ?NOT_LOADED.

%% @doc Gives bytes of the receive budget back.
-spec consumed(connection(), non_neg_integer()) -> ok.
consumed(_Conn, _Bytes) ->
    ?NOT_LOADED.

%% @doc Sends a tick, and a QUIC PING that no flow control can hold back.
-spec tick(connection()) -> ok | {error, closed}.
tick(_Conn) ->
    ?NOT_LOADED.

%% @doc Counters of QUIC packets, and the bytes not yet sent.
-spec stats(connection()) ->
          {ok, Received :: non_neg_integer(), Sent :: non_neg_integer(),
           Pending :: non_neg_integer()}
        | {error, closed}.
stats(_Conn) ->
    ?NOT_LOADED.

%% @doc What is known of the connection: addresses, TLS, path.
-spec info(connection()) -> {ok, map()} | {error, closed}.
info(_Conn) ->
    ?NOT_LOADED.

%% @doc Closes the connection, and tells the peer why.
-spec close(connection(), Reason :: binary()) -> ok.
close(_Conn, _Reason) ->
    ?NOT_LOADED.

%%% Loading

%% @doc Loads the library, once; until then every other function fails.
%%
%% Not by `-on_load': in a release (embedded mode) those functions run after
%% the distribution has started. So a module that is loaded again would have no
%% library, for this one cannot be upgraded in a running node: the module is
%% made sticky, and what would load it again is told so.
-spec load() -> ok | {error, {nif_not_loaded, file:filename(), string()}}.
load() ->
    Path = library_path(),
    case erlang:load_nif(Path, 0) of
        ok ->
            true = code:stick_mod(?MODULE),
            ok;
        {error, {reload, _Loaded}} ->
            ok;
        {error, {_Kind, Text}} ->
            {error, {nif_not_loaded, Path, Text}}
    end.

%% The distribution starts before the file server: only erl_prim_loader and
%% the code server can be asked, and paths stay as they are.
library_path() ->
    case [Path || Path <- library_paths(), is_library(Path)] of
        [Path | _] -> Path;
        [] -> hd(library_paths())
    end.

library_paths() ->
    OfApp = case code:priv_dir(quic_dist) of
                Dir when is_list(Dir) -> [filename:join(Dir, ?MODULE)];
                {error, bad_name} -> []
            end,
    %% `erl -pa ebin' in a directory that is not called quic_dist.
    OfBeam = case code:which(?MODULE) of
                 Beam when is_list(Beam), Beam =/= [] ->
                     Lib = filename:dirname(filename:dirname(Beam)),
                     [filename:join([Lib, "priv", ?MODULE])];
                 _ ->
                     []
             end,
    case OfApp ++ OfBeam of
        [] -> [filename:join(["priv", ?MODULE])];
        Paths -> Paths
    end.

is_library(Path) ->
    lists:any(fun(Ext) ->
                      erl_prim_loader:read_file_info(Path ++ Ext) =/= error
              end, [".so", ".dll"]).
