%% @doc What is said of connections: to people (log lines), and to
%% `net_kernel' (exit reasons).
-module(quic_dist_log).

-export([log/3, engine/2, unverified/2, refused/2, not_shaken/2, moved/3,
         sought/3, closed/3, exit_reason/1,
         peer/1,
         reason/1]).

%% The peer's code for: its endpoint closes, as its node stops (src/close.rs).
-define(GOING_AWAY, 3).
%% RFC 9000, section 20.1: an end that came before the handshake was complete.
-define(APPLICATION_ERROR, 16#c).

%% @doc Writes one line to `logger', with `application => quic_dist' in its
%% metadata. Not with a domain: OTP's default handler drops every domain but
%% OTP's own.
-spec log(logger:level(), io:format(), [term()]) -> ok.
log(Level, Format, Args) ->
    logger:log(Level, Format, Args, #{application => quic_dist}).

%% @doc Writes a line of the engine's own log.
-spec engine(Level :: atom(), binary()) -> ok.
engine(Level, Text) ->
    log(engine_level(Level), "quic_dist: ~ts", [Text]).

engine_level(error) -> error;
engine_level(warn) -> warning;
engine_level(warning) -> warning;
engine_level(notice) -> notice;
engine_level(info) -> info;
engine_level(_) -> debug.

%% @doc Says that a peer could be anybody.
-spec unverified(Node :: binary(), quic_dist_nif:peer()) -> ok.
unverified(Node, Peer) ->
    log(warning, "quic_dist: verify_none: who says that it is ~ts, at ~ts, is "
        "not verified", [text(Node), peer(Peer)]).

%% @doc Says that an incoming connection did not come about. Quiet where the
%% peer gave up, as one of two nodes that dial each other does.
-spec refused(quic_dist_nif:peer(), quic_dist_nif:close_reason()) -> ok.
refused(Peer, Reason) ->
    log(level(Reason), "quic_dist: refused a connection from ~ts: ~ts",
        [peer(Peer), reason(Reason)]).

%% @doc Says that an incoming connection ended in the distribution handshake,
%% with the exit reason of the process that was in it. Quiet where dist_util has
%% said it already, or the peer dialled at the same time as this node.
-spec not_shaken(quic_dist_nif:peer(), term()) -> ok.
not_shaken(Peer, Reason) ->
    Level = case Reason of
                setup_timer_timeout -> warning;
                _ -> info
            end,
    log(Level, "quic_dist: connection from ~ts ended in the distribution "
        "handshake: ~ts", [peer(Peer), not_shaken_reason(Reason)]).

not_shaken_reason(setup_timer_timeout) ->
    "the peer stalled";
not_shaken_reason(shutdown) ->
    "not accepted, or not in the protocol";
not_shaken_reason(Reason) ->
    reason(Reason).

%% @doc Says that an address of a connection has changed: this node's, the
%% peer's, or both.
-spec moved(node() | undefined, quic_dist_nif:path(), quic_dist_nif:path()) ->
          ok.
moved(Node, {OldLocal, OldPeer}, {Local, Peer}) ->
    log(notice, "quic_dist: connection with ~ts goes on from ~ts to ~ts, "
        "before from ~ts to ~ts",
        [name(Node), peer(Local), peer(Peer), peer(OldLocal), peer(OldPeer)]).

%% @doc Says that a silent node is looked for where discovery says it is.
-spec sought(node(), quic_dist_nif:peer(), quic_dist_nif:peer()) -> ok.
sought(Node, Peer, Said) ->
    log(notice, "quic_dist: nothing is heard from ~ts at ~ts: it is looked for "
        "at ~ts", [name(Node), peer(Peer), peer(Said)]).

%% @doc Says that a connection has ended. Quiet (level info) where the peer
%% or this node simply went away, as `inet_tcp' is.
-spec closed(node() | undefined, quic_dist_nif:peer(),
             quic_dist_nif:close_reason()) -> ok.
closed(Node, Peer, Reason) ->
    log(level(Reason), "quic_dist: connection with ~ts at ~ts closed: ~ts",
        [name(Node), peer(Peer), reason(Reason)]).

name(undefined) -> "a node still in the handshake";
name(Node) -> atom_to_list(Node).

level({peer_closed, 0, _}) -> info;
level({peer_closed, ?GOING_AWAY, _}) -> info;
level({local_closed, _}) -> info;
level(owner_down) -> info;
level(endpoint_closed) -> info;
level(idle_timeout) -> notice;
level(handshake_timeout) -> notice;
level({transport_error, ?APPLICATION_ERROR, _}) -> info;
level({io, econnrefused}) -> notice;
level({protocol_error, _}) -> error;
level(_) -> warning.

%% @doc The exit reason, hence the reason of `nodedown', for a connection that
%% has ended. `connection_closed' is what `inet_tcp' says when the peer closes.
-spec exit_reason(quic_dist_nif:close_reason()) -> term().
exit_reason({peer_closed, 0, _}) -> connection_closed;
exit_reason({peer_closed, ?GOING_AWAY, _}) -> connection_closed;
exit_reason({local_closed, _}) -> connection_closed;
exit_reason(owner_down) -> connection_closed;
exit_reason(Reason) -> Reason.

%% @doc `"10.0.0.1:4370"', `"[::1]:4370"'.
-spec peer(quic_dist_nif:peer()) -> string().
peer({Ip, Port}) when tuple_size(Ip) =:= 4 ->
    lists:concat([inet:ntoa(Ip), ":", Port]);
peer({Ip, Port}) ->
    lists:concat(["[", inet:ntoa(Ip), "]:", Port]).

%% @doc A reason in words.
-spec reason(term()) -> unicode:chardata().
reason({peer_closed, 0, Text}) ->
    ["the peer closed it (", text(Text), ")"];
reason({peer_closed, ?GOING_AWAY, Text}) ->
    ["the peer's node is going away (", text(Text), ")"];
reason({peer_closed, Code, Text}) ->
    io_lib:format("the peer closed it with error ~b (~ts)", [Code, text(Text)]);
reason({local_closed, Text}) ->
    ["closed by this node (", text(Text), ")"];
reason(idle_timeout) ->
    "nothing was heard from the peer for idle_timeout";
reason(handshake_timeout) ->
    "the peer did not complete the QUIC handshake in time";
reason({tls, Text}) ->
    ["TLS: ", text(Text)];
reason({protocol_error, Text}) ->
    ["protocol error: ", text(Text)];
reason({transport_error, Code, Text}) ->
    io_lib:format("QUIC transport error ~b (~ts)", [Code, text(Text)]);
reason(owner_down) ->
    "its process has ended";
reason(endpoint_closed) ->
    "the UDP endpoint was closed";
reason(endpoint_failed) ->
    "this node's UDP endpoint has failed";
reason({io, Posix}) ->
    ["UDP socket: ", posix(Posix)];
reason({nif_not_loaded, Path, Text}) ->
    io_lib:format("the NIF library ~ts could not be loaded: ~ts", [Path, Text]);
reason({bad_option, Name, Value}) ->
    io_lib:format("bad value of the option ~tw: ~tw", [Name, Value]);
reason(Posix) when is_atom(Posix) ->
    posix(Posix);
reason(Other) ->
    %% What OTP 28's dist_util says of a handshake holds what the peer sent.
    io_lib:format("~0tp", [Other], [{chars_limit, 400}]).

%% The peer chose these bytes: they get one line of bounded length, whatever
%% they are.
text(Text) ->
    Short = binary:part(Text, 0, min(byte_size(Text), 256)),
    case unicode:characters_to_list(Short) of
        Chars when is_list(Chars) ->
            [case C of
                 _ when C < 32; C >= 127, C < 160 -> $.;
                 _ -> C
             end || C <- Chars];
        _ ->
            io_lib:format("~w", [Short])
    end.

posix(Posix) ->
    case inet:format_error(Posix) of
        "unknown POSIX error" ++ _ -> atom_to_list(Posix);
        Text -> Text
    end.
