%% @doc The border to the engine in Rust: one stub for each function of the
%% NIF library, and the loading of that library.
%%
%% Every handle is an opaque reference. Messages that the engine sends:
%% <ul>
%% <li>to the owner of an endpoint:
%%   `{quic_dist_incoming, Endpoint, Conn, Peer}',
%%   `{quic_dist_refused, Endpoint, Peer, Reason}',
%%   `{quic_dist_unknown_cookie, Endpoint, Question}' (somebody who dials goes by
%%   a cookie that is not known, and is held: see endpoint_set_others/3),
%%   `{quic_dist_log, Level, Text}',
%%   `{quic_dist_endpoint_down, Endpoint, Text}' (its thread failed)</li>
%% <li>to the owner of a connection: `{quic_dist, Conn, connected}',
%%   `{quic_dist, Conn, {control, [binary()]}}', `{quic_dist, Conn, writable}',
%%   `{quic_dist, Conn, {moved, path(), path()}}' (an address has changed: the
%%   way before, and the way now), `{quic_dist, Conn, {silent, N}}' (nothing is
%%   heard from a peer that was dialled, and seek/2 may help; told for the
%%   (N + 1)th time since),
%%   `{quic_dist, Conn, {closed, close_reason()}}' (once, and the last)</li>
%% <li>to the process that set_input/2 has named:
%%   `{quic_dist_packets, [binary()]}', after which it calls data_take/1 until
%%   that gives `[]'</li>
%% <li>to the owner of a stream of the application's:
%%   `quic_dist_stream:message()'</li>
%% <li>to an acceptor of datagrams: `{quic_dist_datagram, Node, binary()}'</li>
%% <li>to who waits with a `Ref': `{Ref, Answer}'</li>
%% </ul>
-module(quic_dist_nif).

-export([load/0,
         identity_new/3, identity_files/4,
         endpoint_open/3, endpoint_close/1, endpoint_set_identity/2,
         endpoint_set_others/3, endpoint_info/1,
         connect/5, peer_is/2, peer_certificate/1, set_owner/2, set_input/2,
         control_send/2, data_send/3, data_send_large/3, packet_sender/1, data_take/1,
         tick/1, seek/2, stats/1, info/1, close/2, panic/2]).
-export([streams_start/2,
         stream_open/5, stream_send/4, stream_send_large/4,
         stream_await_room/3, stream_finish/2, stream_reset/3,
         stream_recv/4, stream_cancel/3,
         stream_set_active/3, stream_set_priority/3,
         stream_give/2, stream_given/3,
         stream_accept/3, stream_stop_accepting/2, stream_list/1, stream_info/2,
         datagram_send/2, datagram_accept/2, datagram_stop_accepting/2,
         datagram_size/1]).
-export([file_open/1, file_close/1, stream_send_file/6,
         hash_new/0, hash_file/4, hash_value/1]).

-nifs([identity_new/3, identity_files/4,
       endpoint_open/3, endpoint_close/1, endpoint_set_identity/2,
       endpoint_set_others/3, endpoint_info/1,
       connect/5, peer_is/2, peer_certificate/1, set_owner/2, set_input/2,
       control_send/2, data_send/3, data_send_large/3, packet_sender/1, data_take/1,
       tick/1, seek/2, stats/1, info/1, close/2, panic/2]).
-nifs([streams_start/2,
       stream_open/5, stream_send/4, stream_send_large/4,
       stream_await_room/3, stream_finish/2, stream_reset/3,
       stream_recv/4, stream_cancel/3,
       stream_set_active/3, stream_set_priority/3,
       stream_give/2, stream_given/3,
       stream_accept/3, stream_stop_accepting/2, stream_list/1, stream_info/2,
       datagram_send/2, datagram_accept/2, datagram_stop_accepting/2,
       datagram_size/1]).
-nifs([file_open/1, file_close/1, stream_send_file/6,
       hash_new/0, hash_file/4, hash_value/1]).

-define(NOT_LOADED, erlang:nif_error({not_loaded, ?MODULE})).

-export_type([identity/0, endpoint/0, connection/0, peer/0, path/0,
              close_reason/0, open_file/0, hash/0]).

-type identity() :: reference().
-type endpoint() :: reference().
-type connection() :: reference().
-type open_file() :: reference().
-type hash() :: reference().
-type peer() :: {inet:ip_address(), inet:port_number()}.
-type path() :: {Local :: peer(), Peer :: peer()}.
-type close_reason() ::
        {peer_closed, Code :: non_neg_integer(), Text :: binary()}
      | {local_closed, Text :: binary()}
      | idle_timeout
      | handshake_timeout
      | {tls, Text :: binary()}
      | {protocol_error, Text :: binary()}
      | {transport_error, Code :: non_neg_integer(), Text :: binary()}
      | owner_down
      | endpoint_closed
      | endpoint_failed
      | {io, inet:posix()}.

%% @doc The certificate authority that follows from the cookie, and a
%% certificate of it for this node. Takes about 0.2 s on a dirty scheduler.
-spec identity_new(Cookie :: binary(), Name :: binary(),
                   TrustEverybody :: boolean()) ->
          {ok, identity()} | {error, term()}.
identity_new(_Cookie, _Name, _TrustEverybody) ->
    ?NOT_LOADED.

%% @doc An identity from files, one set for each role, and what peers will not
%% like about it. Files are read here: keys never lie in the VM's memory. The
%% cookie is for the keys of session tickets.
-spec identity_files(Cookie :: binary(), Name :: binary(), Client :: map(),
                     Server :: map()) ->
          {ok, identity(), [binary()]}
        | {error, {identity, binary()} | {bad_option, atom()}}.
identity_files(_Cookie, _Name, _Client, _Server) ->
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

%% @doc Sets the nodes for which there is another cookie than this node's own, and
%% the identities made of those; `nil' where there is none (yet). These nodes may
%% dial by these, nobody else, and they by no other. `Answered': the last
%% `Question' that was asked before the cookies were looked up, or 0.
-spec endpoint_set_others(endpoint(), [{Node :: binary(), identity() | nil}],
                          Answered :: non_neg_integer()) -> ok.
endpoint_set_others(_Endpoint, _Others, _Answered) ->
    ?NOT_LOADED.

%% @doc What the endpoint does at the moment: address, counters. `allocations' are
%% those of this library's Rust code, whichever endpoint they were for.
-spec endpoint_info(endpoint()) -> map().
endpoint_info(_Endpoint) ->
    ?NOT_LOADED.

%% @doc Dials the node of that name at an address: the peer's certificate has to
%% be its. `Identity': one for this connection alone, or `nil' for the
%% endpoint's. `Owner' gets `connected' or `closed'.
-spec connect(endpoint(), peer(), Node :: binary(), identity() | nil,
              Owner :: pid()) ->
          {ok, connection()} | {error, term()}.
connect(_Endpoint, _Peer, _Node, _Identity, _Owner) ->
    ?NOT_LOADED.

%% @doc Whether the certificate of a peer whose QUIC handshake is complete is good
%% for the node `<<"name@host">>', for some node of `<<"@host">>', or for a node
%% of `<<"host">>' that has no name yet. `unknown': it is not verified.
-spec peer_is(connection(), Name :: binary()) -> boolean() | unknown.
peer_is(_Conn, _Name) ->
    ?NOT_LOADED.

%% @doc Whom the peer's certificate names, for a log line.
-spec peer_certificate(connection()) -> binary() | unknown.
peer_certificate(_Conn) ->
    ?NOT_LOADED.

%% @doc Gives the connection a new owner. From now on its control stream is read.
-spec set_owner(connection(), pid()) -> ok | {error, closed}.
set_owner(_Conn, _Pid) ->
    ?NOT_LOADED.

%% @doc Gives the connection the process that is told of its packets. From now on its data streams
%% are read.
-spec set_input(connection(), pid()) -> ok | {error, closed}.
set_input(_Conn, _Pid) ->
    ?NOT_LOADED.

%% @doc Sends one handshake message on the control stream.
-spec control_send(connection(), iodata()) -> ok | {error, closed | too_long}.
control_send(_Conn, _Message) ->
    ?NOT_LOADED.

%% @doc Queues distribution packets. `busy': they are queued, but the caller
%% is to wait for `writable' before the next call. The owner is told
%% `{low, Process}', once for each of `Waiting', when the stream of that process
%% has no more than 512 KiB to send, these packets included.
-spec data_send(connection(), [iodata()],
                Waiting :: [quic_dist_senders:process()]) ->
          ok | busy | {error, closed}.
data_send(_Conn, _Packets, _Waiting) ->
    ?NOT_LOADED.

%% @doc The same on a dirty scheduler, for packets whose copying takes long.
-spec data_send_large(connection(), [iodata()],
                      Waiting :: [quic_dist_senders:process()]) ->
          ok | busy | {error, closed}.
data_send_large(_Conn, _Packets, _Waiting) ->
    ?NOT_LOADED.

%% @doc The process whose message this packet, taken from the VM, is the first
%% fragment of; `none' if it has no such sender.
-spec packet_sender(iodata()) -> quic_dist_senders:process() | none.
packet_sender(_Packet) ->
    ?NOT_LOADED.

%% @doc Takes the packets that have come since the message or the last call, some
%% 256 KiB at a time: for the process that gets the message. The receive budget
%% gets back what it got before. `[]': what comes from now on is told by a message.
%%
%% `again', or with packets `{again, _}': the caller is to call again as soon as no
%% other process has to run on its scheduler. It is so for `busy_wait' times three
%% (0.3 ms by default) after something has come, and not right after large data.
%% In these calls the endpoint works, which its own thread else does: it receives
%% and sends, also for other connections, and tells their owners (not of the
%% application's streams, nor of ends). A call takes some microseconds where
%% nothing has come, and counts as 1,000 reductions then; it takes up to 256 KiB
%% from the socket, and leaves handshakes to the thread. Who does not call again
%% within a millisecond is not waited for.
-spec data_take(connection()) -> [binary()] | again | {again, [binary()]}.
data_take(_Conn) ->
    ?NOT_LOADED.

%% @doc Sends a tick, and a QUIC PING that no flow control can hold back.
-spec tick(connection()) -> ok | {error, closed}.
tick(_Conn) ->
    ?NOT_LOADED.

%% @doc Discovery says that the peer, which this node has dialled, is at an
%% address. It is looked for there, and the connection moves if it answers there
%% and not where it was.
-spec seek(connection(), peer()) -> ok | {error, closed}.
seek(_Conn, _Peer) ->
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

%% @doc Makes the event thread panic while it works on the connection, which is
%% how its end and its return are tested. It does no more harm than its caller
%% can do anyway, by `erlang:halt/0' say, so it is in every build: the library
%% that is tested is the one that is shipped.
-spec panic(connection(), Text :: binary()) -> ok | {error, closed}.
panic(_Conn, _Text) ->
    ?NOT_LOADED.

%%% The application's own streams and datagrams. `{error, closed}': the
%%% connection has ended.

-type stream_id() :: non_neg_integer().

%% @doc Names the node at the other end; from now on its streams are taken.
-spec streams_start(connection(), node()) -> ok.
streams_start(_Conn, _Node) ->
    ?NOT_LOADED.

%% @doc Opens a stream; it is reset when `Owner' dies, or at once if it is dead.
-spec stream_open(connection(), Owner :: pid(), Uni :: boolean(),
                  Priority :: 16..255, quic_dist_stream:active()) ->
          {ok, stream_id()}
        | {error, closed | stream_limit}.
stream_open(_Conn, _Owner, _Uni, _Priority, _Active) ->
    ?NOT_LOADED.

%% @doc Queues data, all of it or none. `busy': none, for the queue is full.
-spec stream_send(connection(), stream_id(), iodata(), Fin :: boolean()) ->
          ok | busy | {error, closed | unknown_stream}.
stream_send(_Conn, _Id, _Data, _Fin) ->
    ?NOT_LOADED.

%% @doc The same on a dirty scheduler, for what takes long to copy.
-spec stream_send_large(connection(), stream_id(), iodata(),
                        Fin :: boolean()) ->
          ok | busy | {error, closed | unknown_stream}.
stream_send_large(_Conn, _Id, _Data, _Fin) ->
    ?NOT_LOADED.

%% @doc `wait': the caller gets `{Ref, ok}' once there is room in the queue, or
%% `{Ref, {error, _}}'.
-spec stream_await_room(connection(), stream_id(), reference()) ->
          ok | wait | {error, closed | unknown_stream}.
stream_await_room(_Conn, _Id, _Ref) ->
    ?NOT_LOADED.

%% @doc Ends this side, however full the queue is, if it has not ended.
-spec stream_finish(connection(), stream_id()) ->
          ok | {error, closed | unknown_stream}.
stream_finish(_Conn, _Id) ->
    ?NOT_LOADED.

%% @doc Ends both sides at once. The owner is told.
-spec stream_reset(connection(), stream_id(), Code :: non_neg_integer()) ->
          ok | {error, closed | unknown_stream}.
stream_reset(_Conn, _Id, _Code) ->
    ?NOT_LOADED.

%% @doc `wait': the caller gets `{Ref, {ok, binary(), Fin :: boolean()}}' or
%% `{Ref, {error, _}}'. Empty only at the end.
-spec stream_recv(connection(), stream_id(), Length :: non_neg_integer(),
                  reference()) ->
          wait | {error, closed | unknown_stream | einval | ealready}.
stream_recv(_Conn, _Id, _Length, _Ref) ->
    ?NOT_LOADED.

%% @doc Stops waiting. `told': the message is in the caller's mailbox.
-spec stream_cancel(connection(), stream_id(), reference()) -> ok | told.
stream_cancel(_Conn, _Id, _Ref) ->
    ?NOT_LOADED.

%% @doc Sets the mode; a number is added to the one before.
-spec stream_set_active(connection(), stream_id(),
                        quic_dist_stream:active()) ->
          ok | {error, closed | unknown_stream | einval}.
stream_set_active(_Conn, _Id, _Active) ->
    ?NOT_LOADED.

%% @doc Sets the priority.
-spec stream_set_priority(connection(), stream_id(), 16..255) ->
          ok | {error, closed | unknown_stream}.
stream_set_priority(_Conn, _Id, _Priority) ->
    ?NOT_LOADED.

%% @doc The caller, its owner, is about to give the stream away: it gets no
%% message of it any more.
-spec stream_give(connection(), stream_id()) ->
          ok | {error, closed | unknown_stream | not_owner}.
stream_give(_Conn, _Id) ->
    ?NOT_LOADED.

%% @doc The stream has a new owner. If that is dead, the stream is reset.
-spec stream_given(connection(), stream_id(), pid()) ->
          ok | {error, closed | unknown_stream | not_owner}.
stream_given(_Conn, _Id, _NewOwner) ->
    ?NOT_LOADED.

%% @doc Adds an acceptor of streams, until it dies.
-spec stream_accept(connection(), pid(), quic_dist_stream:active()) ->
          ok | {error, closed}.
stream_accept(_Conn, _Acceptor, _Active) ->
    ?NOT_LOADED.

%% @doc Removes it.
-spec stream_stop_accepting(connection(), pid()) -> ok.
stream_stop_accepting(_Conn, _Acceptor) ->
    ?NOT_LOADED.

%% @doc The streams that have an owner: `quic_dist_stream:info()' without
%% `node' and `ref'.
-spec stream_list(connection()) -> [map()].
stream_list(_Conn) ->
    ?NOT_LOADED.

%% @doc One of them.
-spec stream_info(connection(), stream_id()) ->
          {ok, map()} | {error, unknown_stream}.
stream_info(_Conn, _Id) ->
    ?NOT_LOADED.

%% @doc Queues a datagram. When the queue is full, the oldest in it is lost.
-spec datagram_send(connection(), iodata()) ->
          ok | {error, closed | too_long}.
datagram_send(_Conn, _Data) ->
    ?NOT_LOADED.

%% @doc Adds an acceptor of datagrams.
-spec datagram_accept(connection(), pid()) -> ok | {error, closed}.
datagram_accept(_Conn, _Acceptor) ->
    ?NOT_LOADED.

%% @doc Removes it.
-spec datagram_stop_accepting(connection(), pid()) -> ok.
datagram_stop_accepting(_Conn, _Acceptor) ->
    ?NOT_LOADED.

%% @doc The longest datagram that fits a packet now.
-spec datagram_size(connection()) -> {ok, non_neg_integer()} | {error, closed}.
datagram_size(_Conn) ->
    ?NOT_LOADED.

%%% Files. What a call reads is 1 MiB at most.

%% @doc Opens a regular file for reading, and says how long it is. The path is
%% as the operating system takes it. Closed by file_close/1, or when nobody has
%% the reference any more.
-spec file_open(Path :: binary()) ->
          {ok, open_file(), Size :: non_neg_integer()}
        | {error, file:posix()}.
file_open(_Path) ->
    ?NOT_LOADED.

%% @doc Closes it. Whoever reads from it afterwards is told `ebadf'.
-spec file_close(open_file()) -> ok.
file_close(_File) ->
    ?NOT_LOADED.

%% @doc Reads a piece of a file into a stream's queue. `busy': nothing was
%% queued, for the queue is full. Fewer bytes than `Length' were read and queued
%% where the file ends before; then `Fin' is not sent.
-spec stream_send_file(connection(), stream_id(), open_file(),
                       Offset :: non_neg_integer(), Length :: 0..1048576,
                       Fin :: boolean()) ->
          {ok, Read :: non_neg_integer()} | busy
        | {error, closed | unknown_stream | file:posix()}.
stream_send_file(_Conn, _Id, _File, _Offset, _Length, _Fin) ->
    ?NOT_LOADED.

%% @doc A SHA-256 of nothing yet.
-spec hash_new() -> hash().
hash_new() ->
    ?NOT_LOADED.

%% @doc Adds a piece of a file to a hash: as much of it as there is.
-spec hash_file(hash(), open_file(), Offset :: non_neg_integer(),
                Length :: 0..1048576) ->
          {ok, Read :: non_neg_integer()} | {error, file:posix()}.
hash_file(_Hash, _File, _Offset, _Length) ->
    ?NOT_LOADED.

%% @doc The hash of what was added so far.
-spec hash_value(hash()) -> <<_:256>>.
hash_value(_Hash) ->
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
